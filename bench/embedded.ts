import { STATE_SIZE } from '../src/abi/index.ts';
import { createEmbeddedMachine, kernelAddress, MiniKernel } from '../src/drivers/embedded/index.ts';
import { CONTINUE, type MachineHandler, type Trap } from '../src/machine/index.ts';
import { startChild } from './child.ts';
import { manyMachines, memoryUse, pageEvents } from './embedded-hooked.ts';
import type { Measurement, Suite } from './measurement.ts';
import { roundTrips } from './round-trips.ts';

/** Instructions of one measurement of speed, and how often it is repeated; the best one counts. */
const INSTRUCTIONS = 500_000;
const ROUNDS = 60;
/** Stops of one measurement. */
const STOPS = 300_000;

/** A handler that lets everything go on, and counts. */
class Trivial implements MachineHandler {
  stops = 0;

  stop() {
    this.stops++;
    return CONTINUE;
  }

  request(): undefined {}

  closed(): void {}
}

function perSecond(count: number, work: () => void): number {
  const start = performance.now();
  work();
  return (count / (performance.now() - start)) * 1000;
}

/** Speed of the mini kernel and its programs, without and with a handler, taken in turns. */
function speed(): Measurement[] {
  const machine = createEmbeddedMachine({ clock: 'instructions' });
  machine.run(20 * INSTRUCTIONS);
  const free: number[] = [];
  const hooked: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    free.push(perSecond(INSTRUCTIONS, () => machine.run(INSTRUCTIONS)));
    machine.attach(new Trivial());
    hooked.push(perSecond(INSTRUCTIONS, () => machine.run(INSTRUCTIONS)));
    machine.detach();
  }
  return [
    {
      name: 'instructions, not hooked',
      value: Math.max(...free) / 1e6,
      unit: 'M/s',
      against: { what: '20 million', ratio: Math.max(...free) / 20e6, budget: '>= 1' },
    },
    {
      name: 'instructions, hooked, nothing armed',
      value: Math.max(...hooked) / 1e6,
      unit: 'M/s',
      against: { what: 'not hooked', ratio: Math.max(...hooked) / Math.max(...free), budget: '>= 0.95' },
    },
  ];
}

/** Stops a second through a handler that answers at once. */
function stops(
  name: string,
  action: string,
  argument: bigint,
  trap: (machine: Machine) => Trap,
): Measurement {
  const machine = createEmbeddedMachine({ clock: 'instructions', bootArgument: 1 });
  const kernel = new MiniKernel(machine);
  kernel.boot();
  const handler = new Trivial();
  machine.attach(handler);
  machine.arm(trap(machine));
  const run = (count: number) => {
    const end = handler.stops + count;
    while (handler.stops < end) {
      if (machine.run(10_000) === 0) kernel.post(action, argument);
    }
  };
  run(STOPS / 10);
  const before = handler.stops;
  const start = performance.now();
  run(STOPS);
  const rate = ((handler.stops - before) / (performance.now() - start)) * 1000;
  return { name, value: rate / 1e6, unit: 'M/s' };
}

type Machine = ReturnType<typeof createEmbeddedMachine>;

/** The state block of an event, read as often as a host side would: once a stop, with registers changed. */
function stateReads(): Measurement {
  const machine = createEmbeddedMachine({ clock: 'instructions', bootArgument: 1 });
  new MiniKernel(machine).boot();
  const vcpu = machine.vcpus[0]!;
  const block = new Uint8Array(STATE_SIZE);
  const rate = perSecond(1e6, () => {
    for (let i = 0; i < 1e6; i++) vcpu.readState(block);
  });
  return { name: 'vCPU state blocks', value: rate / 1e6, unit: 'M/s' };
}

const page = (access: number) => (): Trap => ({
  kind: 'page',
  gfn: kernelAddress('test_page') / 4096,
  access,
  view: 0,
});

/** The embedded machine: how fast it runs and stops, alone and hooked. */
export const embeddedSuite: Suite = {
  name: 'embedded',
  async run() {
    const vcpu = (machine: Machine) => ({ vcpu: machine.vcpus[0]! });
    return [
      // First: what other measurements leave behind would be in its way.
      memoryUse(),
      ...speed(),
      stops('page stops, a REP MOVSB to a trapped page', 'copy_to', 2048n, page(1)),
      stops('page stops, a REP MOVSB from a trapped page', 'copy_from', 2048n, page(2)),
      stops('singlestep stops', 'count', 10_000n, (machine) => ({ kind: 'singlestep', ...vcpu(machine) })),
      stateReads(),
      await pageEvents(),
      ...(await manyMachines()),
      ...(await roundTrips('embedded', (socket) =>
        startChild('bench/embedded-host.js', [`unix:${socket}`], 'serving'),
      )),
    ];
  },
};
