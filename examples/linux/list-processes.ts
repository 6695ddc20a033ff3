import { listen } from '../../src/index.ts';
import { Linux } from '../../src/linux/index.ts';

/*
 * A tool in a process of its own that lists the processes of a Linux guest, over the wire. Start it with an address,
 * then hook a VM to it: `kvmi hook VM --tool ADDRESS`.
 */

const [address] = process.argv.slice(2);
if (address === undefined) throw new Error('give an address to listen at: unix:/run/tool.sock');
const server = await listen(address);

for await (const guest of server) {
  const linux = await Linux.find(guest);
  console.log(`${linux.kernel.banner}`);
  const { rows, partial, reasons } = await linux.processes();
  for (const { pid, ppid, comm, commandLine } of rows)
    console.log(JSON.stringify({ pid, ppid, comm, commandLine }));
  if (partial) console.error(`not complete: ${reasons.join(', ')}`);
  await guest.detach();
  break;
}
await server.close();
