import { attachKvm } from '../../src/drivers/kvm/index.ts';
import { ACCESS, CONTINUE, type Trap } from '../../src/machine/index.ts';

/*
 * node armed-main.js PID KIND: attaches to the VM of counter.S, arms one thing for good and answers whatever comes.
 * Prints `armed` when the first event was answered; meant to be killed.
 */

const [pid, kind] = process.argv.slice(2) as [string, string];
const machine = attachKvm({ pid: Number(pid), unsafe: true });
let events = 0;
machine.attach({
  stop() {
    events++;
    if (events === 1) console.log('armed');
    return CONTINUE;
  },
  request: () => undefined,
  closed: (error) => console.error(error),
});
const vcpu = machine.vcpus[0]!;
const TRAPS: Readonly<Record<string, Trap>> = {
  singlestep: { kind: 'singlestep', vcpu },
  msr: { kind: 'msr', vcpu, msr: 0x174 },
  page: { kind: 'page', gfn: 0x10, access: ACCESS.all & ~ACCESS.write, view: 0 },
};
if (kind === 'hardware') machine.setHardwareBreakpoints(vcpu, [0xf0031n]);
else await machine.arm(TRAPS[kind]!);
machine.memory.write(0x10010, Uint8Array.of(kind === 'msr' ? 1 : 0));
