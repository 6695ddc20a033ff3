import { createEmbeddedMachine } from '../src/drivers/embedded/index.ts';
import { introspect } from '../src/index.ts';

/* Watches a guest switch address spaces: every write to CR3 that changes it. */

const COUNT = 10;

const machine = createEmbeddedMachine({ name: 'demo' });
machine.start();
const guest = await introspect(machine);

let seen = 0;
const enough = new Promise<void>((resolve) => {
  guest.on('CR', ({ vcpu, data: { cr, old_value, new_value } }) => {
    if (seen === COUNT) return;
    console.log(`vCPU ${vcpu.index}  cr${cr}: 0x${old_value.toString(16)} -> 0x${new_value.toString(16)}`);
    if (++seen === COUNT) resolve();
    // Nothing is returned: the register gets the value that the guest wants.
  });
});
await guest.enable('CR');
for (const vcpu of guest.vcpus) await vcpu.controlCr(3, true);
await enough;

await guest.detach();
await machine.close();
