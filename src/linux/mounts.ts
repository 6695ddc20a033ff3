import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import { listLinks, treeNodes } from './list.ts';
import { findTask } from './maps.ts';
import { Paths } from './paths.ts';
import type { Obj, Session } from './session.ts';
import type { Task } from './tasks.ts';

/** A mounted file system, as in /proc/PID/mountinfo. */
export interface Mount {
  readonly id: number;
  readonly parentId: number;
  /** What is mounted: a device, or a name. */
  readonly source: string;
  readonly path: string;
  readonly fileSystem: string;
  /** `major:minor` in decimal, as in mountinfo. */
  readonly device: string;
  readonly readonly: boolean;
  /** Of its struct mount. */
  readonly address: Gva;
}

const MNT_READONLY = 0x40;
const SB_RDONLY = 1;

/** The mounts that a process sees: those of init unless told. */
export function* mounts(session: Session, pid = 1): Walk<Mount[]> {
  const task = yield* findTask(session, pid);
  if (task === undefined) return [];
  const proxy = yield* session.object('nsproxy', task.pointer('nsproxy'));
  const namespace = yield* session.object('mountNamespace', proxy.pointer('mount'));
  const paths = new Paths(session);
  const root = yield* session.attempt('the root of a process', rootOf(session, task), undefined);
  const rows: Mount[] = [];
  for (const gva of session.timely(yield* mountsOf(session, namespace))) {
    const row = yield* session.attempt('a mount', mountRow(session, paths, gva, root), undefined);
    if (row !== undefined) rows.push(row);
  }
  return rows;
}

/** The mount that the root directory of a process is in; undefined for a process that is ending. */
function* rootOf(session: Session, task: Task): Walk<Gva | undefined> {
  const address = task.pointer('fs');
  if (address === 0n) return undefined;
  const fs = yield* session.object('fs', address);
  return (yield* session.around('mount', 'vfsMount', fs.pointer('rootMount'))).gva;
}

const MAX_DEPTH = 512;

/** Whether a mount can be reached from `root`: what lies above the root of a process is not shown to it. */
function* isBelow(session: Session, gva: Gva, root: Gva): Walk<boolean> {
  let at = gva;
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    if (at === root) return true;
    const parent = (yield* session.object('mount', at)).pointer('parent');
    if (parent === at) return false;
    at = parent;
  }
  return false;
}

/** A tree since 6.8, a list before. */
function* mountsOf(session: Session, namespace: Obj<'mountNamespace'>): Walk<Gva[]> {
  const { layouts } = session.kernel;
  const what = 'the mounts of a namespace';
  if (namespace.has('tree')) {
    const offset = BigInt(layouts.field('mount', 'node').offset);
    const nodes = yield* treeNodes(session, namespace.pointer('tree'), what);
    return nodes.map((node) => node - offset);
  }
  const offset = BigInt(layouts.field('mount', 'list').offset);
  const links = yield* listLinks(session, namespace.address('list'), what);
  return links.map((link) => link - offset);
}

/** Undefined for a mount that is not below `root`. */
function* mountRow(session: Session, paths: Paths, gva: Gva, root: Gva | undefined): Walk<Mount | undefined> {
  if (root !== undefined && !(yield* isBelow(session, gva, root))) return undefined;
  const mount = yield* session.object('mount', gva);
  const block = yield* session.object('superBlock', mount.pointer('superBlock'));
  const parent = yield* session.object('mount', mount.pointer('parent'));
  const device = block.number('device');
  const source = mount.pointer('device');
  return {
    id: mount.number('id'),
    parentId: parent.number('id'),
    source: source === 0n ? 'none' : yield* session.space.string(source, 256),
    path: yield* paths.of(mount.address('vfsMount'), mount.pointer('root')),
    fileSystem: yield* paths.fileSystem(block.gva),
    device: `${device >>> 20}:${device & 0xfffff}`,
    readonly: (mount.number('flags') & MNT_READONLY) !== 0 || (block.number('flags') & SB_RDONLY) !== 0,
    address: gva,
  };
}
