import { getRegister, putRegister, regsOf, STATE_SIZE } from '../../src/abi/state.ts';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { type Answer, RETRY } from '../../src/machine/index.ts';

/*
 * A host side that is to be killed: hooks the VM at argv[2], keeps an int3 in guest code at the guest-physical
 * address argv[3] by stepping over it each time, and pauses vCPUs in between. Prints "armed" when it is set.
 */
const [, , qmp, address] = process.argv;
const gpa = Number(address);
const machine = await openQemu({ qmp: qmp! });
const original = new Uint8Array(1);
await machine.memory.read(gpa, original);
const state = new Uint8Array(STATE_SIZE);

await machine.attach({
  async stop(vcpu, stop): Promise<Answer> {
    if (stop.kind === 'breakpoint' && stop.gpa === gpa) {
      await machine.memory.write(gpa, original);
      await machine.arm({ kind: 'singlestep', vcpu });
      return RETRY;
    }
    if (stop.kind === 'singlestep') {
      await machine.disarm({ kind: 'singlestep', vcpu });
      await machine.memory.write(gpa, Uint8Array.of(0xcc));
    }
    return { action: 'continue' };
  },
  async request(vcpu): Promise<undefined> {
    await vcpu.readState(state);
    // Writing back what is there must not change anything, whenever it is cut short.
    putRegister(state, 'rax', getRegister(state, 'rax'));
    vcpu.writeRegisters(regsOf(state));
  },
  closed(error) {
    if (error) console.error(error.message);
  },
});
for (const vcpu of machine.vcpus) await machine.arm({ kind: 'breakpoint', vcpu });
await machine.memory.write(gpa, Uint8Array.of(0xcc));
console.log('armed');
for (let i = 0; ; i++) {
  await machine.vcpus[i % machine.vcpus.length]!.request();
  await new Promise((resolve) => setTimeout(resolve, i % 7));
}
