import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openQemu } from '../src/drivers/qemu/index.ts';
import { dumpMemory } from '../src/drivers/snapshot/index.ts';
import { Linux } from '../src/linux/index.ts';
import type { Machine } from '../src/machine/index.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../test/kit/linux-guest.ts';
import { type Measurement, median, type Suite } from './measurement.ts';

const RUNS = 5;
const REFRESHES = 40;
const TASKS = 100;
const DUMP_RUNS = 3;

function seconds(run: () => unknown): number {
  const start = performance.now();
  run();
  return (performance.now() - start) / 1000;
}

/** Seconds of a whole process that lists the guest's processes. */
function processTime(qmp: string, cache: string): number {
  const script = join(import.meta.dirname, 'linux-process.js');
  return seconds(() => execFileSync(process.execPath, [script, qmp, cache], { stdio: 'ignore' }));
}

function against(budget: number, value: number, unit: string): Measurement['against'] {
  return { what: `of ${budget} ${unit}`, ratio: value / budget, budget: '<= 1' };
}

async function wholeProcess(qmp: string, directory: string): Promise<Measurement[]> {
  const cache = join(directory, 'cache');
  const cold = median(Array.from({ length: RUNS }, () => processTime(qmp, 'none')));
  processTime(qmp, cache);
  const warm = median(Array.from({ length: RUNS }, () => processTime(qmp, cache)));
  return [
    {
      name: 'find a kernel and list processes, nothing known',
      value: cold,
      unit: 's',
      against: against(0.5, cold, 's'),
    },
    {
      name: 'the same with the kernel in the cache',
      value: warm,
      unit: 's',
      against: against(0.25, warm, 's'),
    },
  ];
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

function memoryFile(pid: number): string {
  const directory = `/proc/${pid}/fd`;
  const fd = readdirSync(directory).find((name) =>
    readlinkSync(join(directory, name)).includes('memory-backend-memfd'),
  );
  return join(directory, fd!);
}

async function dump(machine: Machine, vm: LinuxGuest, directory: string): Promise<Measurement> {
  const ours: number[] = [];
  const dd: number[] = [];
  for (let i = 0; i < DUMP_RUNS; i++) {
    const file = join(directory, `dump-${i}`);
    const start = performance.now();
    await dumpMemory(machine, file, { format: 'elf' });
    ours.push((performance.now() - start) / 1000);
    rmSync(file);
    const args = [`if=${memoryFile(vm.pid)}`, `of=${file}`, 'bs=4M', 'conv=sparse,fsync'];
    dd.push(seconds(() => spawnSync('dd', args, { stdio: 'ignore' })));
    rmSync(file);
  }
  const total = machine.memory.regions.reduce((sum, { size }) => sum + size, 0);
  const value = total / 2 ** 20 / median(ours);
  return {
    name: `dump ${Math.round(total / 2 ** 20)} MiB as ELF`,
    value,
    unit: 'MiB/s',
    against: { what: 'dd of the same bytes', ratio: median(dd) / median(ours), budget: '>= 0.5' },
  };
}

/** A Linux guest with 2 GiB, seen from outside. */
export const linuxSuite: Suite = {
  name: 'linux',
  unavailable: () => whyNoLinuxGuest(),
  async run() {
    const directory = mkdtempSync(join(tmpdir(), 'kvmi-bench-'));
    const vm = await LinuxGuest.boot({ smp: 2, memory: 2048 });
    try {
      await vm.run('i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done');
      await vm.monitor.execute('stop');
      const results = await wholeProcess(vm.qmp, directory);
      const machine = await openQemu({ qmp: vm.qmp });
      results.push(await refresh(machine), await dump(machine, vm, directory));
      await machine.close();
      return results;
    } finally {
      await vm.kill();
      rmSync(directory, { recursive: true });
    }
  },
};
