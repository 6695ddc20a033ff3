import { type Guest, listen } from '../../src/tool/index.ts';

/*
 * A tool of its own, to be killed at any time: listens at argv[2], sets a breakpoint at argv[3] and keeps all
 * vCPUs busy with commands, pauses and single steps. Prints "listening", and "armed" for each guest that is set up.
 */
const [, , address, gva] = process.argv;
const target = BigInt(gva!);

async function torment(guest: Guest): Promise<void> {
  await guest.breakpoints.set(target, () => {});
  console.log('armed');
  for (let round = 0; ; round++) {
    const vcpu = guest.vcpus[round % guest.vcpus.length]!;
    await vcpu.registers();
    const paused = await guest.pause();
    await vcpu.memory.readBytes(target, 64);
    paused.resume();
    let steps = 0;
    await guest.singlestep(vcpu, () => ++steps < 5);
  }
}

const server = await listen(address!, { onError: () => {} });
console.log('listening');
for await (const guest of server) {
  // the host side is killed again and again: then every command fails, and the next guest comes
  torment(guest).catch(() => {});
}
