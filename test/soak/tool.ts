import { type Guest, listen } from '../../src/tool/index.ts';

/*
 * A tool that is to be killed: listens at argv[2], follows the guest's writes to CR3 and to an MSR, and pauses and
 * steps its vCPUs in between. Prints "listening", and "armed" for each guest.
 */
const [, , address] = process.argv;
/** FS.base, which Linux writes when it switches between programs. */
const MSR_FS_BASE = 0xc0000100;
const STEPS = 5;

async function torment(guest: Guest): Promise<void> {
  for (const name of ['CR', 'MSR'] as const) {
    guest.on(name, () => {});
    await guest.enable(name);
  }
  for (const vcpu of guest.vcpus) {
    await vcpu.controlCr(3, true);
    await vcpu.controlMsr(MSR_FS_BASE, true);
  }
  console.log('armed');
  for (let round = 0; ; round++) {
    const vcpu = guest.vcpus[round % guest.vcpus.length]!;
    await vcpu.registers();
    const paused = await guest.pause();
    paused.resume();
    let steps = 0;
    await guest.singlestep(vcpu, () => ++steps < STEPS);
  }
}

const server = await listen(address!, { onError: () => {} });
console.log('listening');
// The host side is killed: then every command fails.
for await (const guest of server) torment(guest).catch(() => {});
