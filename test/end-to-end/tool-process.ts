import { listen } from '../../src/tool/index.ts';

/*
 * A tool of its own, to be killed at any time: listens at argv[2], sets a breakpoint at argv[3] and keeps all
 * vCPUs busy with commands, pauses and single steps. Prints "armed" when everything is set up.
 */
const [, , address, gva] = process.argv;
const server = await listen(address!);
for await (const guest of server) {
  await guest.breakpoints.set(BigInt(gva!), () => {});
  console.log('armed');
  for (let round = 0; ; round++) {
    const vcpu = guest.vcpus[round % guest.vcpus.length]!;
    await vcpu.registers();
    const paused = await guest.pause();
    await vcpu.memory.readBytes(BigInt(gva!), 64);
    paused.resume();
    let steps = 0;
    await guest.singlestep(vcpu, () => ++steps < 5);
  }
}
