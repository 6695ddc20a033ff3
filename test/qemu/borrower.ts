import { writeSync } from 'node:fs';
import { GdbClient } from '../../src/drivers/qemu/gdb.ts';
import { Journal } from '../../src/drivers/qemu/guard/journal.ts';
import { openQemu } from '../../src/drivers/qemu/index.ts';

/*
 * A host side of the VM at argv[2] that stands still, for which it prints "borrowed", when a vCPU executes
 * something for it with registers that are not its own: CPUID (argv[3] is cpuid), or a write to CR3 with another value (cr).
 */
const [, , qmp, what] = process.argv;

let borrowing = false;
const { update } = Journal.prototype;
Journal.prototype.update = function (change) {
  update.call(this, change);
  if ('borrowed' in change) borrowing = change.borrowed !== null;
};
const { resume } = GdbClient.prototype;
GdbClient.prototype.resume = function (command) {
  resume.call(this, command);
  if (!borrowing) return;
  // The step has been sent by then.
  setImmediate(() => {
    writeSync(1, 'borrowed\n');
    process.kill(process.pid, 'SIGSTOP');
  });
};

const machine = await openQemu({ qmp: qmp! });
await machine.attach({
  stop: (_vcpu, stop) => ({
    action: 'continue',
    ...(stop.kind === 'cr' && { value: stop.new ^ 0xdead000n }),
  }),
  async request(vcpu) {
    await vcpu.cpuid(1, 0);
    return undefined;
  },
  closed() {},
});
for (const vcpu of machine.vcpus) {
  if (what === 'cpuid') await vcpu.request();
  else await machine.arm({ kind: 'cr', vcpu, cr: 3 });
}
