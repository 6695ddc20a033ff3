import { getS32, getU32, getU64 } from '../../abi/bytes.ts';
import type { Gva } from '../../machine/index.ts';
import { ramOf, scan } from '../../reading/scan.ts';
import { textOf } from '../../reading/text.ts';
import type { Walk } from '../../reading/walk.ts';
import { idrEntries, listLinks } from '../list.ts';
import type { Session } from '../session.ts';
import { type Task, taskList, threadsOf } from '../tasks.ts';
import type { Finding } from './finding.ts';

/** A task that one view of the kernel has. */
interface Seen {
  readonly gva: Gva;
  readonly pid: number;
  readonly comm: string;
  /** Which view. */
  readonly by: string;
}

const EXIT_DEAD = 0x10;
const EXIT_ZOMBIE = 0x20;
const TASK_DEAD = 0x80;
const TASK_NEW = 0x800;

function isDead(task: Task): boolean {
  return (
    (task.number('state') & TASK_DEAD) !== 0 || (task.number('exitState') & (EXIT_DEAD | EXIT_ZOMBIE)) !== 0
  );
}

/** All threads that the list of tasks leads to, by address. */
function* listed(session: Session): Walk<Map<Gva, Task>> {
  const found = new Map<Gva, Task>();
  for (const leader of session.timely(yield* taskList(session))) {
    found.set(leader.gva, leader);
    for (const thread of yield* session.attempt('threads', threadsOf(session, leader), []))
      found.set(thread.gva, thread);
  }
  return found;
}

/** What names a task and is its own, but for a copy that fork has only begun to change, or has given up. */
function identity(task: Task): string {
  return `${task.number('pid')} ${task.pointer('signal')}`;
}

const VIEWS: readonly ((session: Session) => Walk<Seen[]>)[] = [byPid, byRunQueue, byMemory];

/**
 * Tasks that are in one of the kernel's own tables, or in memory, and not in the list of tasks. What a running guest
 * changes between two looks is sorted out by looking again.
 */
export function* hiddenProcesses(session: Session): Walk<Finding[]> {
  const suspects = new Map<Gva, Seen>();
  for (const view of VIEWS) {
    for (const seen of yield* session.attempt('a view of the tasks', view(session), []))
      if (!suspects.has(seen.gva)) suspects.set(seen.gva, seen);
  }
  let remaining = [...suspects.values()];
  for (let look = 0; look < LOOKS && remaining.length > 0; look++) {
    const fresh = look === 0 ? session : session.again();
    const known = yield* listed(fresh);
    const originals = new Set([...known.values()].map(identity));
    const still: Seen[] = [];
    for (const seen of fresh.timely(remaining)) {
      if (known.has(seen.gva)) continue;
      const task = yield* fresh.attempt('a task', fresh.object('task', seen.gva), undefined);
      const isSame = task !== undefined && task.number('pid') === seen.pid && !isDead(task);
      if (isSame && (task.number('state') & TASK_NEW) === 0 && !originals.has(identity(task)))
        still.push(seen);
    }
    remaining = still;
  }
  return remaining.map(({ gva, pid, comm, by }) => ({
    check: 'hidden-process',
    subject: `${pid} ${comm}`,
    address: gva,
    expected: 'in the list of tasks',
    found: `only in ${by}`,
  }));
}

const LOOKS = 3;

function seen(task: Task, by: string): Seen {
  return { gva: task.gva, pid: task.number('pid'), comm: task.text('comm'), by };
}

/** The tree of process ids of the first namespace, which has all of them. */
function* byPid(session: Session): Walk<Seen[]> {
  const { layouts } = session.kernel;
  const tree = session.symbol('init_pid_ns') + BigInt(layouts.field('pidNamespace', 'idr').offset);
  const { offset } = layouts.field('taskPidLink', 'link');
  const found: Seen[] = [];
  for (const { entry } of yield* idrEntries(session, tree, 'the tree of process ids')) {
    if (!session.hasTime()) break;
    const read = function* (): Walk<undefined> {
      const first = (yield* session.object('pid', entry)).pointer('tasks');
      if (first === 0n) return;
      const task = yield* session.object('task', first - BigInt(offset));
      if (!isDead(task)) found.push(seen(task, 'the tree of process ids'));
    };
    yield* session.attempt('a process id', read(), undefined);
  }
  return found;
}

const MAX_CPUS = 8192;

/**
 * What the processors run, and what waits for them. Nothing in a guest changes as fast as that: a list that does not
 * end well is read again before it is called damaged.
 */
function* byRunQueue(session: Session): Walk<Seen[]> {
  for (let look = 1; ; look++) {
    const fresh = session.again();
    const found = yield* runQueues(fresh);
    if (look < LOOKS && fresh.reasons.length > 0) continue;
    for (const reason of fresh.reasons) session.note(reason);
    return found;
  }
}

function* runQueues(session: Session): Walk<Seen[]> {
  const { symbols, layouts } = session.kernel;
  const queues = symbols.address('runqueues');
  const offsets = symbols.address('__per_cpu_offset');
  if (queues === undefined || offsets === undefined || layouts.get('runQueue').size === 0) return [];
  const idle = session.symbol('init_task');
  const cpus = yield* session.space.u32(session.symbol('nr_cpu_ids'));
  const found: Seen[] = [];
  const entry = layouts.field('task', 'seNode').offset;
  const add = function* (gva: Gva): Walk<undefined> {
    const task = yield* session.object('task', gva);
    if (task.gva !== idle && task.number('pid') !== 0 && !isDead(task)) found.push(seen(task, 'a run queue'));
  };
  for (let cpu = 0; cpu < Math.min(cpus, MAX_CPUS); cpu++) {
    const offset = yield* session.space.u64(offsets + BigInt(8 * cpu));
    const queue = yield* session.object('runQueue', queues + offset);
    yield* session.attempt('a run queue', add(queue.pointer('current')), undefined);
    for (const link of yield* listLinks(session, queue.address('cfsTasks'), 'a run queue'))
      yield* session.attempt('a run queue', add(link - BigInt(entry)), undefined);
  }
  return found;
}

const CLASSES = [
  'fair_sched_class',
  'rt_sched_class',
  'dl_sched_class',
  'idle_sched_class',
  'ext_sched_class',
];
const MAX_PID = 4_194_304;

/** Everything in memory that looks like a living task: each one points to its scheduling class. */
function* byMemory(session: Session): Walk<Seen[]> {
  const { symbols, layouts, memory } = session.kernel;
  const classes = CLASSES.map((name) => symbols.address(name)).filter((address) => address !== undefined);
  const pageOffset = symbols.address('page_offset_base');
  if (classes.length === 0 || pageOffset === undefined) return [];
  const directMap = yield* session.space.u64(pageOffset);
  const lows = new Set(classes.map((address) => Number(address & 0xffffffffn)));
  const offset = layouts.field('task', 'schedClass').offset;
  const { end } = layouts.get('task').span;
  const overlap = end + 4096;
  const found = new Map<Gva, Seen>();
  yield* scan(memory, ramOf(memory.regions), { phase: 'tasks', overlap }, (bytes, gpa) => {
    const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    for (let i = 1; i < words.length; i += 2) {
      if (words[i] !== -1 || !lows.has(words[i - 1]! >>> 0)) continue;
      const at = 4 * (i - 1) - offset;
      if (at < 0 || at + end > bytes.length) continue;
      const task = looksLikeTask(session, bytes, at);
      const gva = directMap + BigInt(gpa + at);
      if (task !== undefined) found.set(gva, { ...task, gva, by: 'memory' });
    }
    return session.hasTime() ? undefined : true;
  });
  return [...found.values()];
}

function looksLikeTask(session: Session, bytes: Buffer, at: number): Pick<Seen, 'pid' | 'comm'> | undefined {
  const { fields } = session.kernel.layouts.get('task');
  const { pid, tgid, comm, state, exitState, stack, tasks, cred } = fields;
  if (!pid || !tgid || !comm || !state || !exitState || !stack || !tasks || !cred) return undefined;
  const number = getS32(bytes, at + pid.offset);
  const group = getS32(bytes, at + tgid.offset);
  if (number <= 0 || number > MAX_PID || group <= 0 || group > MAX_PID) return undefined;
  const dead = getU32(bytes, at + state.offset) & TASK_DEAD || getU32(bytes, at + exitState.offset);
  if (dead !== 0) return undefined;
  const pointers = [stack, tasks, cred].map(({ offset }) => getU64(bytes, at + offset));
  if (pointers.some((pointer) => pointer < 0xff00_0000_0000_0000n || (pointer & 7n) !== 0n)) return undefined;
  const name = textOf(bytes.subarray(at + comm.offset, at + comm.offset + comm.size));
  return /^[\x20-\x7e]{1,15}$/.test(name) ? { pid: number, comm: name } : undefined;
}
