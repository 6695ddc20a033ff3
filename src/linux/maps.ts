import { getU64 } from '../abi/bytes.ts';
import type { Gva } from '../machine/index.ts';
import { Bounds, isKernelPointer } from '../reading/bounds.ts';
import type { Walk } from '../reading/walk.ts';
import { Paths } from './paths.ts';
import type { Obj, Session } from './session.ts';
import { type Task, taskList } from './tasks.ts';

/** A mapping of a process, as in /proc/PID/maps. */
export interface MemoryMap {
  readonly pid: number;
  readonly start: Gva;
  readonly end: Gva;
  readonly size: number;
  /** `rwxp` or `rwxs`, with `-` for what is not allowed. */
  readonly protection: string;
  /** In the file, in bytes. */
  readonly offset: number;
  /** `major:minor` in hexadecimal, as in /proc. */
  readonly device: string;
  readonly inode: number;
  /** A path, `[heap]`, `[stack]`, `[vdso]` …, or empty. */
  readonly path: string;
}

export type Area = Obj<'area'>;

const VM_READ = 1;
const VM_WRITE = 2;
const VM_EXEC = 4;
const VM_MAYSHARE = 0x80;

/** The areas of an address space by ascending address: a list until 6.0, a maple tree since 6.1. */
export function* areasOf(session: Session, mm: Obj<'mm'>): Walk<Area[]> {
  const areas: Area[] = [];
  const bounds = new Bounds(session, 'an address space');
  if (mm.has('areaTree')) {
    yield* session.attempt(
      'an address space',
      visit(session, mm.pointer('areaTree'), ALL, bounds, areas),
      undefined,
    );
    return areas;
  }
  for (let gva = mm.pointer('firstArea'); gva !== 0n && bounds.allows(gva); ) {
    const area = yield* session.attempt('an address space', session.object('area', gva), undefined);
    if (area === undefined) break;
    areas.push(area);
    gva = area.pointer('next');
  }
  return areas;
}

const ALL = (1n << 64n) - 1n;
/** The low bits of a pointer to a maple node: what kind it is, and flags. */
const NODE_FLAGS = 0xffn;
const LEAF = 1;
const ARANGE = 3;
const MAX_DEPTH = 16;

/** include/linux/maple_tree.h: slot i covers what lies above pivot i - 1, up to pivot i; the last one up to `max`. */
function* visit(
  session: Session,
  entry: Gva,
  max: bigint,
  bounds: Bounds,
  areas: Area[],
  depth = 0,
): Walk<void> {
  if (entry === 0n) return;
  // Only the root may be an area itself; below it the level says what an entry is.
  if (depth === 0 && (entry & 3n) !== 2n) {
    areas.push(yield* session.object('area', entry));
    return;
  }
  const kind = Number((entry >> 3n) & 15n);
  const gva = entry & ~NODE_FLAGS;
  if (kind < LEAF || kind > ARANGE || depth > MAX_DEPTH) {
    session.note(`an address space has a tree node of kind ${kind} at depth ${depth}`);
    return;
  }
  if (!bounds.allows(gva)) return;
  const node =
    kind === ARANGE ? yield* session.object('mapleArange', gva) : yield* session.object('mapleRange', gva);
  const pivots = node.bytes('pivots');
  const slots = node.bytes('slots');
  for (let i = 0; i < slots.length / 8; i++) {
    const pivot = 8 * i < pivots.length ? getU64(pivots, 8 * i) : max;
    const upper = pivot === 0n && i > 0 ? max : pivot;
    const slot = getU64(slots, 8 * i);
    if (kind !== LEAF) yield* visit(session, slot, upper, bounds, areas, depth + 1);
    else if (isKernelPointer(slot) && bounds.allows(slot)) areas.push(yield* session.object('area', slot));
    if (upper >= max) return;
  }
}

export function* memoryMaps(session: Session, pid: number): Walk<MemoryMap[]> {
  const task = yield* findTask(session, pid);
  const address = task?.pointer('mm') ?? 0n;
  if (address === 0n) return [];
  const mm = yield* session.object('mm', address);
  const namer = new AreaNamer(session, mm);
  const rows: MemoryMap[] = [];
  for (const area of session.timely(yield* areasOf(session, mm)))
    rows.push(yield* mapRow(session, namer, pid, area));
  return rows;
}

/** The process with this id; undefined, and a note, when there is none. */
export function* findTask(session: Session, pid: number): Walk<Task | undefined> {
  const task = (yield* taskList(session)).find((candidate) => candidate.number('tgid') === pid);
  if (task === undefined) session.note(`there is no process ${pid}`);
  return task;
}

function* mapRow(session: Session, namer: AreaNamer, pid: number, area: Area): Walk<MemoryMap> {
  const start = area.pointer('start');
  const end = area.pointer('end');
  const flags = area.number('flags');
  const file = area.pointer('file');
  const common = {
    pid,
    start,
    end,
    size: Number(end - start),
    protection:
      (flags & VM_READ ? 'r' : '-') +
      (flags & VM_WRITE ? 'w' : '-') +
      (flags & VM_EXEC ? 'x' : '-') +
      (flags & VM_MAYSHARE ? 's' : 'p'),
    path: yield* session.attempt('a mapping', namer.name(area), ''),
  };
  const none = { offset: 0, device: '00:00', inode: 0 };
  if (file === 0n) return { ...common, ...none };
  const origin = yield* session.attempt('a mapped file', originOf(session, file), none);
  return { ...common, ...origin, offset: area.number('pageOffset') * 4096 };
}

function* originOf(session: Session, file: Gva): Walk<Pick<MemoryMap, 'device' | 'inode' | 'offset'>> {
  const { inode, device } = yield* inodeOf(session, yield* session.object('file', file));
  return { device: deviceText(device), inode, offset: 0 };
}

/** Number of a file's inode, its mode, and the device of its file system. */
export function* inodeOf(session: Session, file: Obj<'file'>) {
  const inode = yield* session.object('inode', file.pointer('inode'));
  const block = yield* session.object('superBlock', inode.pointer('superBlock'));
  return { inode: inode.number('number'), mode: inode.number('mode'), device: block.number('device') };
}

/** As /proc prints a device: the kernel keeps 12 bits major and 20 bits minor. */
export function deviceText(device: number): string {
  const two = (number: number) => number.toString(16).padStart(2, '0');
  return `${two(device >>> 20)}:${two(device & 0xfffff)}`;
}

/** Names of areas, as fs/proc/task_mmu.c gives them. */
class AreaNamer {
  readonly #session: Session;
  readonly #mm: Obj<'mm'>;
  readonly #paths: Paths;

  constructor(session: Session, mm: Obj<'mm'>) {
    this.#session = session;
    this.#mm = mm;
    this.#paths = new Paths(session);
  }

  *name(area: Area): Walk<string> {
    const file = area.pointer('file');
    if (file !== 0n) return yield* this.#paths.ofFile(yield* this.#session.object('file', file));
    const special = yield* this.#special(area);
    if (special !== undefined) return special;
    const start = area.pointer('start');
    const end = area.pointer('end');
    const mm = this.#mm;
    if (start <= mm.pointer('brk') && end >= mm.pointer('brkStart')) return '[heap]';
    const stack = mm.pointer('stackStart');
    return start <= stack && end >= stack ? '[stack]' : '';
  }

  /** The kernel's own mappings carry a name. */
  *#special(area: Area): Walk<string | undefined> {
    if (area.pointer('operations') !== this.#session.kernel.symbols.address('special_mapping_vmops'))
      return undefined;
    const mapping = yield* this.#session.object('specialMapping', area.pointer('private'));
    return yield* this.#session.space.string(mapping.pointer('name'), 64);
  }
}
