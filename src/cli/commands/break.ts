import type { Awaitable } from '../../awaitable.ts';
import { KvmiError, messageOf } from '../../error.ts';
import { integer, place } from '../../input/values.ts';
import { requireCapability } from '../../machine/index.ts';
import { type Column, now, type Row } from '../../rows/columns.ts';
import type { Probe, ProbeHit, ProbeKind } from '../../tool/index.ts';
import { argument, command, defaultOption, flag, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { EXIT } from '../exit-codes.ts';
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

function hitRow({ vcpu, registers }: ProbeHit): Row {
  const row: Record<string, Row[string]> = { time: now(), vcpu: vcpu.index };
  for (const name of GENERAL_NAMES) row[name] = registers[name];
  return row;
}

/** By what each kind of probe sees the guest. */
const MEANS: Readonly<Record<ProbeKind, string>> = {
  gdbstub: "QEMU's own breakpoints; guest memory stays as it is",
  'debug-registers': 'a debug register of the processor; guest memory stays as it is',
  embedded: 'the interpreter; guest memory stays as it is',
  int3: 'an int3 in guest memory',
};

/** Takes the probe back. The result says what became of it; undefined when it is removed. */
async function removeProbe(probe: Probe): Promise<string | undefined> {
  try {
    await probe.remove();
    return undefined;
  } catch (error) {
    if (error instanceof KvmiError && error.code === 'E_CLOSED') {
      return 'the VM is gone, or was let go, before the probe was removed';
    }
    return `the probe could not be removed: ${messageOf(error)}`;
  }
}

function afterReset(gva: bigint): string {
  return (
    `the guest was reset: the probe stays at 0x${gva.toString(16)}, but a kernel that boots chooses its addresses anew; ` +
    'begin again when it is up'
  );
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

  /** `failure`: why the probe is not removed. */
  print({ log, exitWith }: Context, machine: StopMeter, failure: string | undefined): void {
    const seconds = (performance.now() - this.#from) / 1000;
    const rate = (this.#hits / seconds).toFixed(1);
    const what = this.#hits === 1 ? '1 hit' : `${this.#hits} hits`;
    const held = machine.heldBy('probe', 'breakpoint', 'singlestep') / Math.max(1, this.#hits);
    const cost = this.#hits === 0 ? '' : `, each held the vCPU ${held.toFixed(2)} ms on average`;
    const hits = `${what} in ${seconds.toFixed(1)} s (${rate}/s)${cost}`;
    if (failure === undefined) {
      log.note(`${hits}; the probe is removed`);
    } else {
      log.warn(`${hits}; ${failure}`);
      exitWith(EXIT.error.code);
    }
  }
}

export const breakCommand = command({
  name: 'break',
  summary: 'report each time the guest executes an instruction',
  description: [
    'Hooks the VM, sets a probe, prints a row for each hit, and carries the instruction out. The guest goes on after ' +
      'each hit. At the end - after --count hits, --timeout, or Ctrl-C - the probe is removed and the VM unhooked.',
    "The probe is one of the machine's own where it has some: a breakpoint of QEMU, or a debug register of the processor " +
      'on stock KVM. Guest memory stays as it is then, nothing is left in it even when kvmi is killed, and the address ' +
      'needs not be mapped yet. Elsewhere it is an int3 in guest memory. With -v a line says which.',
    'When the VM ends first, or the probe cannot be removed, the last line says so and the exit code is 1.',
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
      'whose page tables translate the address of an int3',
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
      if (!machine.probes) requireCapability(machine.capabilities, 'breakpoint');
      const gva = await addressOf(where);
      const hits = new Mailbox<Row>();
      const summary = new Summary();
      const end = (): void => hits.end();
      machine.onReset = () => {
        // A reset is several to QEMU.
        machine.onReset = () => {};
        context.log.warn(afterReset(gva));
      };
      context.signal.addEventListener('abort', end, { once: true });
      void guest.closed.then(end);
      const report = (hit: ProbeHit): Awaitable<void> => {
        if (summary.hits >= count) return;
        const room = hits.put(hitRow(hit));
        if (summary.add() >= count) hits.end();
        return room;
      };
      const probe = await guest.probes.at(gva, report, { vcpu: vcpuOf(guest, vcpu) });
      context.log.info(`waiting at 0x${gva.toString(16)}, by ${MEANS[probe.kind]}; Ctrl-C ends`);
      try {
        yield* hits.read();
      } finally {
        hits.end();
        context.signal.removeEventListener('abort', end);
        summary.print(context, machine, await removeProbe(probe));
      }
    });
  },
});
