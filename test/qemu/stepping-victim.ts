import { openQemu } from '../../src/drivers/qemu/index.ts';
import type { Answer } from '../../src/machine/index.ts';

/* A host side that is to be killed: steps every vCPU of the VM at argv[2]. Prints "armed" when it does. */
const [, , qmp] = process.argv;
const machine = await openQemu({ qmp: qmp! });
await machine.attach({
  stop: (): Answer => ({ action: 'continue' }),
  request: () => undefined,
  closed() {},
});
for (const vcpu of machine.vcpus) await machine.arm({ kind: 'singlestep', vcpu });
console.log('armed');
