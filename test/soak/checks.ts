import { setTimeout as sleep } from 'node:timers/promises';
import { journals, keeperOf } from '../../src/drivers/qemu/guard/journal.ts';
import { recordOf } from '../../src/drivers/qemu/qmp.ts';
import { PATIENCE_MS } from './child.ts';
import { type Fault, fault } from './faults.ts';
import { leftOver } from './left-over.ts';
import type { Scene, Wanted } from './scene.ts';
import type { Subject } from './subject.ts';

/** A guest that boots takes its time. */
const BOOT_MS = 180_000;
/** How QEMU calls what others have left. One that they stopped while the gdbstub held it stays in `debug`. */
const STATES: Readonly<Record<Wanted, readonly string[]>> = {
  running: ['running'],
  paused: ['paused', 'debug'],
  postmigrate: ['postmigrate'],
  any: ['running', 'paused', 'debug'],
};
/** What was on its way from a guest that stands still is not its clock. */
const CHANGES = 4;
/** A QEMU that stood still makes the kernel complain of time that is missing: that is no harm. */
const PANIC =
  /Kernel panic|Oops|int3|general protection|invalid opcode|double fault|BUG: (?!soft lockup|workqueue lockup)/;

/** What is wrong after a round. `used`: its workspaces; `logged`: how many lines the guest had printed before. */
export async function faultsOf(
  scene: Scene,
  mark: string,
  used: readonly string[],
  logged: number,
): Promise<Fault[]> {
  const { subject, wanted } = scene;
  const left = await leftOver(subject, mark, used);
  const state = await stateOf(subject, wanted);
  if (wanted === 'postmigrate') return [...left, ...state];
  if (wanted !== 'running') await scene.goOn();
  const stands = state.some(({ kind }) => kind === 'frozen');
  return [
    ...left,
    ...state,
    ...(stands ? [] : await clock(subject, scene.retired ? BOOT_MS : PATIENCE_MS)),
    ...(await bytes(subject)),
    ...subject.log
      .slice(logged)
      .filter((line) => PANIC.test(line))
      .slice(0, 1)
      .map((line) => fault('panics', line)),
  ];
}

/** Whether something is left in a VM that nobody is about to undo. */
export function needsRepair({ pid }: Subject): boolean {
  const state = [...journals().values()].find(({ vm }) => vm.pid === pid);
  return state !== undefined && !keeperOf(state);
}

async function stateOf({ monitor }: Subject, wanted: Wanted): Promise<Fault[]> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(20)) {
    const { status } = recordOf(await monitor.execute('query-status'), 'the status');
    if (STATES[wanted].includes(String(status))) return [];
    if (Date.now() < deadline) continue;
    return [
      fault(wanted === 'running' ? 'frozen' : 'other', `the VM is ${status}, others left it ${wanted}`),
    ];
  }
}

async function clock(subject: Subject, patience: number): Promise<Fault[]> {
  let last = subject.clock;
  const deadline = Date.now() + patience;
  for (let changes = 0; changes < CHANGES; await sleep(20)) {
    const { clock: now } = subject;
    if (now !== last) changes++;
    last = now;
    if (Date.now() > deadline) return [fault('frozen', 'its clock stands still')];
  }
  return [];
}

async function bytes(subject: Subject): Promise<Fault[]> {
  const changed = await subject.text.changes(subject);
  if (changed.length === 0) return [];
  return [fault('bytes changed', `kernel text at ${changed.slice(0, 8).join(', ')}`, changed.length)];
}
