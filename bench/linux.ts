import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openQemu } from '../src/drivers/qemu/index.ts';
import { Linux } from '../src/linux/index.ts';
import type { Machine } from '../src/machine/index.ts';
import type { KernelSeries } from '../test/kit/debian-kernel.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../test/kit/linux-guest.ts';
import { type Measurement, median, type Suite } from './measurement.ts';

const RUNS = 9;
const REFRESHES = 40;
const TASKS = 100;

function seconds(run: () => unknown): number {
  const start = performance.now();
  run();
  return (performance.now() - start) / 1000;
}

/** Seconds of a whole `kvmi ps`. */
function commandTime(qmp: string, cache: string): number {
  const command = join(import.meta.dirname, '..', '..', 'bin', 'kvmi');
  const env = { ...process.env, XDG_CACHE_HOME: cache };
  return seconds(() => execFileSync(process.execPath, [command, 'ps', `qemu:${qmp}`], { env }));
}

function against(budget: number, value: number, unit: string): Measurement['against'] {
  return { what: `of ${budget} ${unit}`, ratio: value / budget, budget: '<= 1' };
}

function wholeProcess(qmp: string, directory: string, kernel: KernelSeries): Measurement[] {
  const start = median(runs(() => seconds(() => execFileSync(process.execPath, ['-e', '0']))));
  const cold = median(runs((i) => commandTime(qmp, join(directory, `${kernel}-${i}`))));
  const warm = median(runs(() => commandTime(qmp, join(directory, `${kernel}-0`))));
  return [
    { name: 'a bare node', value: start, unit: 's' },
    { name: `kvmi ps, ${kernel}, nothing known`, value: cold, unit: 's', against: against(0.5, cold, 's') },
    {
      name: `kvmi ps, ${kernel}, kernel in the cache`,
      value: warm,
      unit: 's',
      against: against(0.25, warm, 's'),
    },
  ];
}

function runs(measure: (index: number) => number): number[] {
  return Array.from({ length: RUNS }, (_, i) => measure(i));
}

async function refresh(machine: Machine): Promise<Measurement> {
  const linux = await Linux.find(machine.memory, { cache: false });
  const times: number[] = [];
  let tasks = 0;
  for (let i = 0; i < REFRESHES; i++) {
    const start = performance.now();
    tasks = (await linux.processes()).rows.length;
    times.push(performance.now() - start);
  }
  const value = (median(times.slice(REFRESHES / 2)) / tasks) * TASKS;
  return { name: `list ${TASKS} processes again`, value, unit: 'ms', against: against(10, value, 'ms') };
}

async function withGuest(
  kernel: KernelSeries,
  measure: (vm: LinuxGuest, directory: string) => Promise<Measurement[]> | Measurement[],
): Promise<Measurement[]> {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-bench-'));
  const vm = await LinuxGuest.boot({ kernel, smp: 2, memory: 2048 });
  try {
    await vm.run('i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done');
    await vm.monitor.execute('stop');
    return await measure(vm, directory);
  } finally {
    await vm.kill();
    rmSync(directory, { recursive: true });
  }
}

/** A Linux guest with 2 GiB, seen from outside. */
export const linuxSuite: Suite = {
  name: 'linux',
  unavailable: () => whyNoLinuxGuest(),
  async run() {
    const results = await withGuest('6.1', async (vm, directory) => {
      const machine = await openQemu({ qmp: vm.qmp });
      const inProcess = [await refresh(machine)];
      await machine.close();
      return [...wholeProcess(vm.qmp, directory, '6.1'), ...inProcess];
    });
    if (whyNoLinuxGuest('6.12') !== undefined) return results;
    const newer = await withGuest('6.12', (vm, directory) => wholeProcess(vm.qmp, directory, '6.12'));
    return [...results, ...newer.slice(1)];
  },
};
