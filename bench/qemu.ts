import { openQemu } from '../src/drivers/qemu/index.ts';
import { introspect } from '../src/index.ts';
import type { Machine } from '../src/machine/index.ts';
import { symbolsOf } from '../test/kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../test/kit/linux-guest.ts';
import { startChild } from './child.ts';
import { type Measurement, median, type Suite } from './measurement.ts';
import { rawBreakpointCost } from './raw-stub.ts';
import { roundTrips } from './round-trips.ts';

const BULK = 128 << 20;
const CHUNK = 1 << 20;
const HOOKS = 15;
const HITS = 6;
const KILLS = 10;
const FUNCTION = '__x64_sys_getuid';

/** Milliseconds that `run` takes: the middle one of some runs. */
async function milliseconds(runs: number, run: () => unknown): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < runs; i++) {
    const start = performance.now();
    await run();
    times.push(performance.now() - start);
  }
  return median(times);
}

async function bulkRead(machine: Machine, way: string, budget: `>= ${number}`): Promise<Measurement> {
  const into = new Uint8Array(CHUNK);
  const from = new Uint8Array(BULK).fill(1);
  const base = 0x100000;
  const read = async (): Promise<void> => {
    for (let at = 0; at < BULK; at += CHUNK) await machine.memory.read(base + at, into);
  };
  const copy = (): void => {
    for (let at = 0; at < BULK; at += CHUNK) into.set(from.subarray(at, at + CHUNK));
  };
  await read();
  const ours = await milliseconds(7, read);
  const limit = await milliseconds(7, copy);
  return {
    name: `bulk read of ${BULK >> 20} MiB, ${way}`,
    value: BULK / 2 ** 20 / (ours / 1000),
    unit: 'MiB/s',
    against: { what: 'memcpy of as much', ratio: limit / ours, budget },
  };
}

async function hookCost(vm: LinuxGuest): Promise<Measurement> {
  const machine = await openQemu({ qmp: vm.qmp });
  const cost = await milliseconds(HOOKS, async () => {
    const guest = await introspect(machine);
    await guest.vcpus[0]!.registers();
    await guest.detach();
  });
  await machine.close();
  return {
    name: 'hook, first registers, unhook',
    value: cost,
    unit: 'ms',
    against: { what: 'of 60 ms', ratio: cost / 60, budget: '<= 1' },
  };
}

async function breakpointCost(vm: LinuxGuest): Promise<Measurement[]> {
  const symbols = await symbolsOf(vm, [FUNCTION]);
  const gva = symbols[FUNCTION]!;
  const load = `i=0; while [ $i -lt ${HITS} ]; do id -u >/dev/null; i=$((i+1)); done`;
  const plain = await milliseconds(3, () => vm.run(load));
  const floor = await rawBreakpointCost(vm, gva, () => vm.run(load));
  const machine = await openQemu({ qmp: vm.qmp });
  const guest = await introspect(machine);
  let hits = 0;
  const breakpoint = await guest.breakpoints.set(gva, () => {
    hits++;
  });
  const start = performance.now();
  await vm.run(load);
  const elapsed = performance.now() - start;
  await breakpoint.remove();
  await guest.detach();
  await machine.close();
  const ours = (elapsed - plain) / hits;
  return [
    {
      name: 'breakpoint event, raw gdbstub client (the floor)',
      value: floor.cost - plain / floor.hits,
      unit: 'ms',
    },
    {
      name: 'breakpoint event, through host side and SDK',
      value: ours,
      unit: 'ms',
      against: { what: 'the raw client', ratio: ours / (floor.cost - plain / floor.hits) },
    },
  ];
}

/** How long a guest stands still when the host side is killed while everything is stopped for it. */
async function afterKill(vm: LinuxGuest): Promise<Measurement> {
  const times: number[] = [];
  const symbols = await symbolsOf(vm, [FUNCTION]);
  const gva = `0x${symbols[FUNCTION]!.toString(16)}`;
  const socket = `unix:${vm.directory}/kill.sock`;
  const tool = await startChild('test/end-to-end/tool-process.js', [socket, gva], 'listening');
  for (let i = 0; i < KILLS; i++) {
    const host = await startChild('test/end-to-end/host-process.js', [vm.qmp, socket], 'serving');
    await new Promise((resolve) => setTimeout(resolve, 300 + 37 * i));
    const start = performance.now();
    host.kill('SIGKILL');
    while (!((await vm.monitor.execute('query-status')) as { running: boolean }).running);
    await vm.nextTicks(1);
    times.push(performance.now() - start);
  }
  tool.kill('SIGKILL');
  const worst = Math.max(...times);
  return {
    name: `guest's clock ticks after the host side is killed, worst of ${KILLS}`,
    value: worst,
    unit: 'ms',
    against: { what: 'of 1 s', ratio: worst / 1000, budget: '<= 1' },
  };
}

/** A Debian guest in QEMU (TCG, two vCPUs). */
export const qemuSuite: Suite = {
  name: 'qemu',
  unavailable: () => whyNoLinuxGuest(),
  async run() {
    const results: Measurement[] = [];
    for (const [backend, way, budget] of [
      ['memfd', 'shared memory', '>= 0.6'],
      ['private', '/proc/PID/mem', '>= 0.25'],
    ] as const) {
      const vm = await LinuxGuest.boot({ smp: 2, backend });
      try {
        const machine = await openQemu({ qmp: vm.qmp });
        results.push(await bulkRead(machine, way, budget));
        await machine.close();
        if (backend === 'private') continue;
        results.push(await hookCost(vm));
        results.push(await afterKill(vm));
        results.push(...(await breakpointCost(vm)));
        results.push(
          ...(await roundTrips('qemu', (socket) =>
            startChild('test/end-to-end/host-process.js', [vm.qmp, `unix:${socket}`], 'serving'),
          )),
        );
      } finally {
        await vm.kill();
      }
    }
    return results;
  },
};
