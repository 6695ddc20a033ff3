import type { Gva } from '../machine/index.ts';
import { textOf } from '../reading/text.ts';
import { forAll, type Walk } from '../reading/walk.ts';
import { bootTimeOf, type Clock, pointInTime, readClock } from './clock.ts';
import { containerOf, controlGroup } from './containers.ts';
import { listLinks } from './list.ts';
import { Paths } from './paths.ts';
import type { Obj, Session } from './session.ts';

export type Task = Obj<'task'>;

/** A process, as `kvmi ps` prints it. */
export interface Process {
  readonly pid: number;
  readonly ppid: number;
  readonly uid: number;
  readonly gid: number;
  /** The letter of ps(1): R, S, D, T, t, X, Z, P, I. */
  readonly state: string;
  readonly comm: string;
  /** The path of what it executes; empty for a kernel thread. */
  readonly exe: string;
  readonly commandLine: readonly string[];
  /** Nanoseconds since 1970 by the guest's clock; undefined when that is not known. */
  readonly startTime: bigint | undefined;
  /** Nanoseconds since the guest booted. */
  readonly startNs: bigint;
  readonly threads: number;
  /** Resident memory in bytes, as far as the kernel has summed it up. */
  readonly resident: number;
  readonly kernelThread: boolean;
  /** The id that a container runtime gave it; empty outside containers. */
  readonly container: string;
  readonly controlGroup: string;
  /** Of its task_struct. */
  readonly address: Gva;
}

export interface Thread {
  readonly pid: number;
  readonly tid: number;
  readonly state: string;
  readonly comm: string;
  readonly cpu: number;
  readonly address: Gva;
}

const PF_KTHREAD = 0x00200000;
const IDLE = 0x402;
/** By the number of the highest bit that is set (fs/proc/array.c, task_state_array). */
const STATES = ['S', 'D', 'T', 't', 'X', 'Z', 'P'];
const REPORTED = 0x7f;
const RTLOCK_WAIT = 0x1000;

export function stateOf(task: Task): string {
  const state = task.number('state');
  if ((state & IDLE) === IDLE) return 'I';
  const reported = (state | task.number('exitState')) & REPORTED;
  if (reported === 0) return (state & RTLOCK_WAIT) !== 0 ? 'D' : 'R';
  return STATES[31 - Math.clz32(reported)]!;
}

/** All processes by their leading task, from the kernel's list of tasks; init_task is not among them. */
export function* taskList(session: Session): Walk<Task[]> {
  const { layouts } = session.kernel;
  const offset = BigInt(layouts.field('task', 'tasks').offset);
  const head = session.symbol('init_task') + offset;
  const links = yield* listLinks(session, head, 'the list of tasks');
  const tasks: Task[] = [];
  for (const link of session.timely(links)) {
    const task = yield* session.attempt('a task', session.object('task', link - offset), undefined);
    if (task !== undefined) tasks.push(task);
  }
  return tasks;
}

/** All threads of a process. */
export function* threadsOf(session: Session, leader: Task): Walk<Task[]> {
  const { layouts } = session.kernel;
  const signal = yield* session.object('signal', leader.pointer('signal'));
  const offset = BigInt(layouts.field('task', 'threadNode').offset);
  const links = yield* listLinks(session, signal.address('threadHead'), 'a list of threads');
  const tasks: Task[] = [];
  for (const link of session.timely(links)) {
    const task = yield* session.attempt('a thread', session.object('task', link - offset), undefined);
    if (task !== undefined) tasks.push(task);
  }
  return tasks;
}

/** What is shared by the rows of one listing. */
interface Listing {
  readonly session: Session;
  readonly paths: Paths;
  readonly clock: Clock | undefined;
  /** Process ids by address of the task, to name parents. */
  readonly groups: ReadonlyMap<Gva, number>;
  /** Control groups by css_set, which most tasks share. */
  readonly controlGroups: Map<Gva, string>;
}

/** All processes, or the one with that id. */
export function* processes(session: Session, pid?: number): Walk<Process[]> {
  const all = yield* taskList(session);
  const tasks = pid === undefined ? all : all.filter((task) => task.number('tgid') === pid);
  if (pid !== undefined && tasks.length === 0) {
    session.note(`there is no process ${pid}`);
    return [];
  }
  const groups = new Map(all.map((task) => [task.gva, task.number('tgid')]));
  groups.set(session.symbol('init_task'), 0);
  const listing = {
    session,
    paths: new Paths(session),
    clock: yield* readClock(session),
    groups,
    controlGroups: new Map(),
  };
  const rows = yield* forAll(tasks, function* (task): Walk<Process | undefined> {
    if (!session.hasTime()) return undefined;
    return yield* session.attempt(`process ${task.number('tgid')}`, processRow(listing, task), undefined);
  });
  return rows.filter((row) => row !== undefined);
}

function* processRow(listing: Listing, task: Task): Walk<Process> {
  const { session, clock } = listing;
  const pid = task.number('tgid');
  const cred = yield* session.object('cred', task.pointer('realCred'));
  const mm = task.pointer('mm');
  const image =
    mm === 0n ? NO_IMAGE : yield* session.attempt(`process ${pid}`, imageOf(listing, mm), NO_IMAGE);
  const group = yield* controlGroupOf(listing, task);
  const startNs = task.big('startTime');
  const signal = yield* session.attempt(
    `process ${pid}`,
    session.object('signal', task.pointer('signal')),
    undefined,
  );
  return {
    pid,
    ppid: yield* parentOf(listing, task),
    uid: cred.number('uid'),
    gid: cred.number('gid'),
    state: stateOf(task),
    comm: task.text('comm'),
    ...image,
    startTime: clock && pointInTime(bootTimeOf(clock) + startNs),
    startNs,
    threads: signal?.number('threads') ?? 0,
    kernelThread: (task.number('flags') & PF_KTHREAD) !== 0,
    container: containerOf(group),
    controlGroup: group,
    address: task.gva,
  };
}

function* controlGroupOf({ session, controlGroups }: Listing, task: Task): Walk<string> {
  if (!task.has('cgroups')) return '';
  const set = task.pointer('cgroups');
  const known = controlGroups.get(set);
  if (known !== undefined) return known;
  const path = yield* session.attempt('a control group', controlGroup(session, set), '');
  controlGroups.set(set, path);
  return path;
}

function* parentOf({ session, groups }: Listing, task: Task): Walk<number> {
  const address = task.pointer('parent');
  const known = groups.get(address);
  if (known !== undefined) return known;
  // The parent is a thread that does not lead its process, or came after the list was read.
  const parent = yield* session.attempt('a parent', session.object('task', address), undefined);
  return parent?.number('tgid') ?? 0;
}

type Image = Pick<Process, 'exe' | 'commandLine' | 'resident'>;
const NO_IMAGE: Image = { exe: '', commandLine: [], resident: 0 };

function* imageOf({ session, paths }: Listing, address: Gva): Walk<Image> {
  const mm = yield* session.object('mm', address);
  const file = mm.pointer('exeFile');
  const exe =
    file === 0n
      ? ''
      : yield* session.attempt('a path', paths.ofFile(yield* session.object('file', file)), '');
  return { exe, commandLine: yield* argumentsOf(session, mm), resident: residentOf(mm) };
}

function residentOf(mm: Obj<'mm'>): number {
  let pages = 0n;
  for (const field of ['filePages', 'anonPages', 'shmemPages'] as const)
    if (mm.has(field)) pages += BigInt.asIntN(64, mm.big(field));
  return pages > 0n ? Number(pages) * 4096 : 0;
}

/** Arguments are cut at this size; the kernel allows 2 MiB and more. */
const MAX_ARGUMENTS = 128 << 10;

/** Zero-separated strings of a process, such as its arguments. Those not in memory (swapped out) are left out. */
export function* stringsOf(session: Session, mm: Obj<'mm'>, start: Gva, end: Gva): Walk<string[]> {
  const space = yield* session.userSpace(mm);
  if (space === undefined || end <= start) return [];
  const size = end - start > MAX_ARGUMENTS ? MAX_ARGUMENTS : Number(end - start);
  if (end - start > MAX_ARGUMENTS) session.note(`arguments cut at ${MAX_ARGUMENTS} bytes`);
  const bytes = Buffer.from(yield* space.read(start, size));
  const strings: string[] = [];
  for (let at = 0; at < size; ) {
    const zero = bytes.indexOf(0, at);
    const stop = zero < 0 ? size : zero;
    strings.push(textOf(bytes.subarray(at, stop)));
    at = stop + 1;
  }
  return strings;
}

function* argumentsOf(session: Session, mm: Obj<'mm'>): Walk<string[]> {
  const strings = yield* session.attempt(
    'arguments',
    stringsOf(session, mm, mm.pointer('argStart'), mm.pointer('argEnd')),
    [],
  );
  // What setproctitle() leaves behind the new title.
  while (strings.length > 1 && strings.at(-1) === '') strings.pop();
  return strings;
}

export function* threads(session: Session, pid?: number): Walk<Thread[]> {
  const rows: Thread[] = [];
  for (const leader of session.timely(yield* taskList(session))) {
    if (pid !== undefined && leader.number('tgid') !== pid) continue;
    for (const task of yield* session.attempt('threads', threadsOf(session, leader), [])) {
      if (!session.hasRoom(rows.length, 'threads')) return rows;
      rows.push({
        pid: task.number('tgid'),
        tid: task.number('pid'),
        state: stateOf(task),
        comm: task.text('comm'),
        cpu: task.has('cpu') ? task.number('cpu') : 0,
        address: task.gva,
      });
    }
  }
  return rows;
}

/** A process with its depth in the tree of processes, for printing; parents come before children. */
export interface TreeRow extends Process {
  readonly depth: number;
}

/** Orders processes as a tree. A process whose parent is not among them is a root. */
export function treeOf(rows: readonly Process[]): TreeRow[] {
  const children = new Map<number, Process[]>();
  const pids = new Set(rows.map((row) => row.pid));
  for (const row of rows) {
    const parent = pids.has(row.ppid) && row.ppid !== row.pid ? row.ppid : 0;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [row]);
    else siblings.push(row);
  }
  const tree: TreeRow[] = [];
  const open = [...(children.get(0) ?? [])].reverse().map((row) => ({ row, depth: 0 }));
  const placed = new Set<Process>();
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { row, depth } = next;
    if (placed.has(row)) continue;
    placed.add(row);
    tree.push({ ...row, depth });
    for (const child of [...(children.get(row.pid) ?? [])].reverse())
      open.push({ row: child, depth: depth + 1 });
  }
  // Processes that are each other's ancestors, which only a damaged guest has.
  for (const row of rows) if (!placed.has(row)) tree.push({ ...row, depth: 0 });
  return tree;
}
