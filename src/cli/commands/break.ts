import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import { type Awaitable, then } from '../../awaitable.ts';
import { integer, place } from '../../input/values.ts';
import { type Gva, type HardwareBreakpoints, requireCapability } from '../../machine/index.ts';
import { type Column, now, type Row } from '../../rows/columns.ts';
import type { Guest } from '../../tool/index.ts';
import { argument, command, defaultOption, flag, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { withGuest } from '../guest-session.ts';
import { Mailbox } from '../mailbox.ts';
import { GENERAL_NAMES } from '../registers.ts';
import type { StopMeter } from '../stop-meter.ts';
import { VM } from '../targets.ts';
import { vcpuOf } from './regs.ts';

const registerColumns = GENERAL_NAMES.map(
  (name): Column => ({
    name,
    kind: 'hex',
    ...(name !== 'rip' && { wide: true }),
    ...(name === 'rip' && { key: true }),
    about: name === 'rip' ? 'address of the instruction' : `the register ${name} before the instruction`,
  }),
);
const ripFirst = [...registerColumns].sort((a, b) => Number(b.name === 'rip') - Number(a.name === 'rip'));

const columns: readonly Column[] = [
  { name: 'time', kind: 'time', about: 'when the hit was reported' },
  { name: 'vcpu', kind: 'decimal', width: 4, about: 'index of the vCPU' },
  ...ripFirst,
];

function hitRow(vcpu: number, register: (name: (typeof GENERAL_NAMES)[number]) => bigint): Row {
  const row: Record<string, Row[string]> = { time: now(), vcpu };
  for (const name of GENERAL_NAMES) row[name] = register(name);
  return row;
}

/** Called with the row of each hit; the vCPU goes on when what it returns is done. */
type Report = (row: Row) => Awaitable<void>;

/** A breakpoint of the processor: the guest's memory stays as it is. */
function setHardware(breakpoints: HardwareBreakpoints, gva: Gva, report: Report): Awaitable<() => void> {
  return breakpoints.set(gva, (vcpu) => {
    const state = new Uint8Array(STATE_SIZE);
    return then(vcpu.readState(state), () => report(hitRow(vcpu.index, (name) => getRegister(state, name))));
  });
}

/** An int3 in the guest's memory. */
async function setSoftware(
  guest: Guest,
  gva: Gva,
  vcpu: number,
  report: Report,
): Promise<() => Promise<void>> {
  const breakpoint = await guest.breakpoints.set(
    gva,
    (event) => report(hitRow(event.vcpu.index, (name) => event.registers[name])),
    { vcpu: vcpuOf(guest, vcpu) },
  );
  return () => breakpoint.remove();
}

/** What was hit, at what rate, and what that cost the guest. */
class Summary {
  #hits = 0;
  readonly #from = performance.now();

  get hits(): number {
    return this.#hits;
  }

  add(): number {
    this.#hits++;
    return this.#hits;
  }

  print({ log }: Context, machine: StopMeter): void {
    const seconds = (performance.now() - this.#from) / 1000;
    const rate = (this.#hits / seconds).toFixed(1);
    const what = this.#hits === 1 ? '1 hit' : `${this.#hits} hits`;
    const held = machine.heldBy('breakpoint', 'singlestep') / Math.max(1, this.#hits);
    const cost = this.#hits === 0 ? '' : `, each held the vCPU ${held.toFixed(2)} ms on average`;
    log.note(`${what} in ${seconds.toFixed(1)} s (${rate}/s)${cost}; the breakpoint is removed`);
  }
}

export const breakCommand = command({
  name: 'break',
  summary: 'report each time the guest executes an instruction',
  description: [
    'Hooks the VM, sets a breakpoint, prints a row for each hit, and carries the instruction out. The guest goes on after ' +
      'each hit. At the end - after --count hits, --timeout, or Ctrl-C - the breakpoint is removed and the VM unhooked.',
    'On stock KVM it is a breakpoint of the processor: guest memory stays as it is, and nothing is left in it even when ' +
      'kvmi is killed. Elsewhere it is an int3 in guest memory.',
    'When rows are read more slowly than they come, the guest is slowed down; none is lost.',
  ],
  arguments: [
    VM,
    argument('ADDRESS', 'guest-virtual address of an instruction, or a symbol of the kernel', place),
  ],
  options: {
    count: valueOption('-n, --count <N>', 'end after that many hits', integer('--count', 1)),
    regs: flag('-r, --regs', 'all general registers in the table, too'),
    vcpu: defaultOption(
      '--vcpu <N>',
      'whose page tables translate the address',
      integer('--vcpu', 0, 4095),
      0,
    ),
  },
  examples: [
    { command: 'kvmi break VM do_sys_openat2', does: 'until Ctrl-C' },
    {
      command: 'kvmi break VM do_sys_openat2 -n 10 -c time,vcpu,rdi,rsi',
      does: 'ten hits, with two arguments',
    },
    {
      command: 'kvmi break VM 0xffffffff81234560 --timeout 5 -o jsonl | jq .rax',
      does: 'five seconds, for a program',
    },
  ],
  columns,
  stream: true,
  shown: ({ regs }) => (regs ? columns.map(({ name }) => name) : undefined),
  run(context, [vm, where], { count = Number.POSITIVE_INFINITY, vcpu }) {
    return withGuest(context, vm, async function* (guest, machine, addressOf) {
      const { hardwareBreakpoints } = machine;
      if (!hardwareBreakpoints) requireCapability(machine.capabilities, 'breakpoint');
      const gva = await addressOf(where);
      const hits = new Mailbox<Row>();
      const summary = new Summary();
      const end = (): void => hits.end();
      context.signal.addEventListener('abort', end, { once: true });
      void guest.closed.then(end);
      const report: Report = (row) => {
        if (summary.hits >= count) return;
        const room = hits.put(row);
        if (summary.add() >= count) hits.end();
        return room;
      };
      const remove = hardwareBreakpoints
        ? await setHardware(hardwareBreakpoints, gva, report)
        : await setSoftware(guest, gva, vcpu, report);
      context.log.info(`waiting at 0x${gva.toString(16)}; Ctrl-C ends`);
      try {
        yield* hits.read();
      } finally {
        hits.end();
        context.signal.removeEventListener('abort', end);
        await remove();
        summary.print(context, machine);
      }
    });
  },
});
