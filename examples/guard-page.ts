import { createEmbeddedMachine, kernelAddress, MiniKernel } from '../src/drivers/embedded/index.ts';
import { introspect } from '../src/index.ts';
import { ACCESS } from '../src/machine/index.ts';

/* Guards a page of guest memory: every write to it is reported before it happens, and then let through. */

const WRITES = 3;
const gpa = kernelAddress('test_page');

const machine = createEmbeddedMachine({ name: 'demo' });
machine.start();
const guest = await introspect(machine);

let reported = 0;
const enough = new Promise<void>((resolve) => {
  guest.on('PF', ({ vcpu, data, registers }) => {
    const where = `0x${data.gpa.toString(16)} at rip 0x${registers.rip.toString(16)}`;
    console.log(`vCPU ${vcpu.index}  write of 0x${(registers.rax & 0xffn).toString(16)} to ${where}`);
    if (++reported === WRITES) resolve();
    return 'continue';
  });
});
await guest.enable('PF');
await guest.setPageAccess([{ gpa, access: ACCESS.read | ACCESS.execute }]);

// Asks the small kernel in the machine to write there.
const kernel = new MiniKernel(machine);
for (let value = 1; value <= WRITES; value++) {
  const before = kernel.done();
  kernel.post('write', BigInt(value - 1), BigInt(0x40 + value));
  while (kernel.done() === before) await new Promise((resolve) => setTimeout(resolve, 1));
}
await enough;
const bytes = await guest.memory.readBytes(gpa, WRITES);
console.log(`the page begins with ${Buffer.from(bytes).toString('hex')}`);

await guest.detach();
await machine.close();
