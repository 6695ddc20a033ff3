import { openQemu } from '../src/drivers/qemu/index.ts';
import { Linux } from '../src/linux/index.ts';

/** Lists the processes of a guest once, as a command would: `QMP-SOCKET CACHE-DIRECTORY|none`. */
const [qmp, cache] = process.argv.slice(2);
const machine = await openQemu({ qmp: qmp! });
const linux = await Linux.find(machine.memory, { cache: cache === 'none' ? false : cache! });
const { rows } = await linux.processes();
await machine.close();
console.log(rows.length);
