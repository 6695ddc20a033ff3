import { getU64 } from '../abi/bytes.ts';
import type { Gva } from '../machine/index.ts';
import { forAll, type Walk } from '../reading/walk.ts';
import { inodeOf } from './maps.ts';
import { Paths } from './paths.ts';
import type { Obj, Session } from './session.ts';
import { type Task, taskList } from './tasks.ts';

/** An open file of a process, as in /proc/PID/fd. */
export interface OpenFile {
  readonly pid: number;
  readonly comm: string;
  readonly fd: number;
  readonly type: 'file' | 'directory' | 'character' | 'block' | 'pipe' | 'socket' | 'link' | 'anonymous';
  /** `r`, `w`, `rw`, or empty for a file opened with O_PATH. */
  readonly access: string;
  readonly path: string;
  readonly position: number;
  readonly inode: number;
  /** Of its struct file. */
  readonly address: Gva;
}

/** By the format bits of a mode. */
const TYPES: Readonly<Record<number, OpenFile['type']>> = {
  1: 'pipe',
  2: 'character',
  4: 'directory',
  6: 'block',
  8: 'file',
  10: 'link',
  12: 'socket',
};
const FMODE_READ = 1;
const FMODE_WRITE = 2;
/** fs.nr_open can be set to this at most on most systems; tables beyond it are cut. */
const MAX_FDS = 1 << 20;
const FDS_PER_READ = 512;

/** An entry of a table of open files. */
export interface Descriptor {
  readonly fd: number;
  readonly file: Gva;
}

/** What the descriptors of a task lead to. */
export function* descriptorsOf(session: Session, task: Task): Walk<Descriptor[]> {
  const files = task.pointer('files');
  if (files === 0n) return [];
  const table = yield* session.object('fdTable', (yield* session.object('files', files)).pointer('table'));
  const max = table.number('max');
  const count = Math.min(max, MAX_FDS);
  if (max > MAX_FDS) session.note(`a table of ${max} open files was cut at ${MAX_FDS}`);
  const found: Descriptor[] = [];
  for (let fd = 0; fd < count && session.hasTime(); fd += FDS_PER_READ) {
    const size = Math.min(FDS_PER_READ, count - fd);
    const pointers = yield* session.space.read(table.pointer('files') + BigInt(8 * fd), 8 * size);
    for (let i = 0; i < size; i++) {
      const file = getU64(pointers, 8 * i);
      if (file !== 0n) found.push({ fd: fd + i, file });
    }
  }
  return found;
}

/** Open files of one process, or of all. */
export function* openFiles(session: Session, pid?: number): Walk<OpenFile[]> {
  const paths = new Paths(session);
  const tasks = (yield* taskList(session)).filter((task) => pid === undefined || task.number('tgid') === pid);
  if (pid !== undefined && tasks.length === 0) session.note(`there is no process ${pid}`);
  let count = 0;
  const lists = yield* forAll(tasks, function* (task): Walk<OpenFile[]> {
    const what = `open files of process ${task.number('tgid')}`;
    const rows: OpenFile[] = [];
    const descriptors = yield* session.attempt(what, descriptorsOf(session, task), []);
    for (const descriptor of session.timely(descriptors)) {
      if (!session.hasRoom(count++, 'open files')) break;
      const row = yield* session.attempt(what, fileRow(session, paths, task, descriptor), undefined);
      if (row !== undefined) rows.push(row);
    }
    return rows;
  });
  return lists.flat();
}

function* fileRow(session: Session, paths: Paths, task: Task, { fd, file }: Descriptor): Walk<OpenFile> {
  const open = yield* session.object('file', file);
  const { inode, mode } = yield* inodeOf(session, open);
  const access = open.number('mode');
  return {
    pid: task.number('tgid'),
    comm: task.text('comm'),
    fd,
    type: TYPES[mode >>> 12] ?? 'anonymous',
    access: (access & FMODE_READ ? 'r' : '') + (access & FMODE_WRITE ? 'w' : ''),
    path: yield* session.attempt('a path', paths.ofFile(open), ''),
    position: positionOf(open),
    inode,
    address: file,
  };
}

function positionOf(open: Obj<'file'>): number {
  return open.has('position') ? open.number('position') : 0;
}
