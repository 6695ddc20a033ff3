import { STATE_SIZE } from '../../src/abi/state.ts';
import { attachKvm } from '../../src/drivers/kvm/index.ts';
import { ACCESS, CONTINUE, type Trap } from '../../src/machine/index.ts';

/*
 * node armed-main.js PID GUEST KIND: attaches to the VM with the guest of GUEST.S, arms one thing for good and answers
 * whatever comes; `paused` and `running` arm nothing. Prints `armed` when the first event was answered, or the vCPU is
 * where it was wanted; meant to be killed.
 */

const [pid, name, kind] = process.argv.slice(2) as [string, string, string];
const GUESTS = {
  counter: { breakpoint: 0xf0031n, gfn: 0x10, msr: 0x174, switch: 0x10010 },
  actions: { breakpoint: 0x10080n, gfn: 0x20, msr: 0x140, switch: undefined },
} as const;
const guest = GUESTS[name as keyof typeof GUESTS];
const machine = attachKvm({ pid: Number(pid), unsafe: kind !== 'paused' && kind !== 'running' });
const state = new Uint8Array(STATE_SIZE);
let events = 0;
const count = (): void => {
  events++;
  if (events === 1) console.log('armed');
};
machine.attach({
  stop() {
    count();
    return CONTINUE;
  },
  request(vcpu) {
    vcpu.readState(state);
    console.log('armed');
    return kind === 'paused' ? new Promise(() => {}) : undefined;
  },
  closed: (error) => console.error(error),
});
const vcpu = machine.vcpus[0]!;
const TRAPS: Readonly<Record<string, Trap>> = {
  singlestep: { kind: 'singlestep', vcpu },
  msr: { kind: 'msr', vcpu, msr: guest.msr },
  page: { kind: 'page', gfn: guest.gfn, access: ACCESS.all & ~ACCESS.write, view: 0 },
};
if (kind === 'hardware') machine.hardwareBreakpoints.set(guest.breakpoint, count);
else if (TRAPS[kind]) await machine.arm(TRAPS[kind]);
else void vcpu.request();
if (guest.switch !== undefined) machine.memory.write(guest.switch, Uint8Array.of(kind === 'msr' ? 1 : 0));
