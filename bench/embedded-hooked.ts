import { createEmbeddedMachine, kernelAddress, MiniKernel } from '../src/drivers/embedded/index.ts';
import { introspect } from '../src/index.ts';
import { type Measurement, median } from './measurement.ts';

/** Events of one measurement, and how often it is repeated; the best one counts. */
const EVENTS = 10_000;
const ROUNDS = 40;
/** Bytes that the guest copies to the trapped page, an event each, at a time. */
const COPIES = 2048n;

const MACHINES = 200;
const ANSWER_LIMIT = 50;

/** Page events a second through host side, codec and SDK, with a handler that answers at once. */
export async function pageEvents(): Promise<Measurement> {
  const machine = createEmbeddedMachine({ clock: 'instructions', bootArgument: 1 });
  const kernel = new MiniKernel(machine);
  kernel.boot();
  machine.start();
  const guest = await introspect(machine);
  let events = 0;
  guest.on('PF', () => {
    events++;
    return 'continue';
  });
  await guest.enable('PF');
  await guest.setPageAccess([{ gpa: kernelAddress('test_page'), access: 1 }]);
  machine.pause();
  const rates: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const end = events + EVENTS;
    const before = events;
    const start = performance.now();
    while (events < end) {
      if (machine.run(10_000) > 0) continue;
      kernel.post('copy_to', COPIES);
      await Promise.resolve();
    }
    if (round > 0) rates.push(((events - before) / (performance.now() - start)) * 1000);
  }
  machine.resume();
  await guest.detach();
  await machine.close();
  const best = Math.max(...rates);
  return {
    name: 'page events, host side, codec and SDK in one process',
    value: best / 1e6,
    unit: 'M/s',
    against: { what: '300,000 a second', ratio: best / 300_000, budget: '>= 1' },
  };
}

/** How long a machine among many takes to answer, all of them busy. */
export async function manyMachines(): Promise<Measurement[]> {
  const machines = Array.from({ length: MACHINES }, () => createEmbeddedMachine());
  for (const machine of machines) machine.start();
  const guests = await Promise.all(machines.map((machine) => introspect(machine)));
  const times: number[] = [];
  for (let round = 0; round < 3; round++) {
    for (const guest of guests) {
      const start = performance.now();
      await guest.vcpus[0]!.registers();
      times.push(performance.now() - start);
    }
  }
  const everybody = performance.now();
  await Promise.all(guests.map((guest) => guest.vcpus[0]!.registers()));
  const all = performance.now() - everybody;
  for (const guest of guests) await guest.detach();
  for (const machine of machines) await machine.close();
  const slowest = Math.max(...times);
  return [
    { name: `${MACHINES} busy machines: registers, the middle one`, value: median(times), unit: 'ms' },
    {
      name: `${MACHINES} busy machines: registers, the slowest`,
      value: slowest,
      unit: 'ms',
      against: { what: `${ANSWER_LIMIT} ms`, ratio: slowest / ANSWER_LIMIT, budget: '<= 1' },
    },
    { name: `${MACHINES} busy machines: registers of all at once`, value: all, unit: 'ms' },
  ];
}

/** Memory that a machine with 16 MiB for its guest takes, its guest's memory included. */
export function memoryUse(): Measurement {
  const used = () => {
    globalThis.gc?.();
    globalThis.gc?.();
    const { heapUsed, external } = process.memoryUsage();
    return (heapUsed + external) / 2 ** 20;
  };
  const before = used();
  const machine = createEmbeddedMachine({ clock: 'instructions' });
  machine.run(10_000_000);
  const size = used() - before;
  void machine.close();
  return {
    name: 'memory of a machine with a guest of 16 MiB',
    value: size,
    unit: 'MiB',
    against: { what: '80 MiB', ratio: size / 80, budget: '<= 1' },
  };
}
