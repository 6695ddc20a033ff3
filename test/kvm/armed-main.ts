import { STATE_SIZE } from '../../src/abi/state.ts';
import { kernelMemslots } from '../../src/drivers/kvm/attach.ts';
import { kvmCapabilities } from '../../src/drivers/kvm/capabilities.ts';
import { attachKvm, KvmMachine } from '../../src/drivers/kvm/index.ts';
import { VmFile } from '../../src/drivers/kvm/slots/vm-file.ts';
import { ACCESS, CONTINUE, type Trap } from '../../src/machine/index.ts';
import { kvmDescriptors } from '../../src/system/proc.ts';

/*
 * node armed-main.js PID GUEST KIND: attaches to the VM with the guest of GUEST.S, arms one thing for good and answers
 * whatever comes; `paused` and `running` arm nothing, `int3` writes a breakpoint where the guest does not come by. Prints `armed` when the first event was answered, or the vCPU is
 * where it was wanted; meant to be killed.
 */

const [pid, name, kind] = process.argv.slice(2) as [string, string, string];
const GUESTS = {
  counter: { breakpoint: 0xf0031n, gfn: 0x10, code: 0xf0, msr: 0x174, switch: 0x10010, unused: 0x30000 },
  actions: { breakpoint: 0x10080n, gfn: 0x20, code: 0x10, msr: 0x140, switch: undefined, unused: 0x1003f },
} as const;
const guest = GUESTS[name as keyof typeof GUESTS];
const machine =
  kind === 'int3'
    ? withBreakpoints(Number(pid))
    : attachKvm({ pid: Number(pid), unsafe: kind !== 'paused' && kind !== 'running' });
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

/** A machine that takes int3 to be reported, which is so with every flavour of KVM but PVM. */
function withBreakpoints(process: number): KvmMachine {
  return new KvmMachine(new VmFile(process, kvmDescriptors(process).vms[0]!), {
    capabilities: kvmCapabilities('vmx'),
    unsafe: true,
    liftFilters: true,
    memslots: kernelMemslots,
  });
}

async function writeBreakpoint(): Promise<void> {
  await machine.arm({ kind: 'breakpoint', vcpu });
  machine.memory.write(guest.unused, Uint8Array.of(0xcc));
  void vcpu.request();
}

const TRAPS: Readonly<Record<string, Trap>> = {
  singlestep: { kind: 'singlestep', vcpu },
  msr: { kind: 'msr', vcpu, msr: guest.msr },
  page: { kind: 'page', gfn: guest.gfn, access: ACCESS.all & ~ACCESS.write, view: 0 },
  read: { kind: 'page', gfn: guest.gfn, access: 0, view: 0 },
  execute: { kind: 'page', gfn: guest.code, access: ACCESS.all & ~ACCESS.execute, view: 0 },
  untouched: { kind: 'page', gfn: 0x30, access: 0, view: 0 },
};
if (kind === 'hardware') {
  machine.probes.set(guest.breakpoint, () => {
    count();
    return undefined;
  });
} else if (kind === 'int3') await writeBreakpoint();
else if (TRAPS[kind]) {
  await machine.arm(TRAPS[kind]);
  if (kind === 'untouched') console.log('armed');
} else void vcpu.request();
if (guest.switch !== undefined) machine.memory.write(guest.switch, Uint8Array.of(kind === 'msr' ? 1 : 0));
