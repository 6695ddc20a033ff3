import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import type { Session } from './session.ts';

const MAX_DEPTH = 64;
/** Controllers that a kernel can have at most. */
const MAX_SUBSYSTEMS = 16;

/**
 * The path of a task's control group, by its css_set, as in /proc/PID/cgroup: of the unified hierarchy, or else of the
 * first controller that is not at the root.
 */
export function* controlGroup(session: Session, address: Gva): Walk<string> {
  const { layouts } = session.kernel;
  const set = yield* session.object('css', address);
  const unified = yield* groupPath(session, set.pointer('group'));
  if (unified !== '/') return unified;
  const { size } = layouts.field('css', 'subsystems');
  for (let i = 0; i < Math.min(size / 8, MAX_SUBSYSTEMS); i++) {
    const state = yield* session.space.u64(set.address('subsystems') + BigInt(8 * i));
    if (state === 0n) continue;
    const path = yield* groupPath(session, (yield* session.object('cssState', state)).pointer('group'));
    if (path !== '/') return path;
  }
  return '/';
}

function* groupPath(session: Session, group: Gva): Walk<string> {
  let node = yield* session.object('kernfs', (yield* session.object('cgroup', group)).pointer('node'));
  const parts: string[] = [];
  for (let depth = 0; depth < MAX_DEPTH && node.pointer('parent') !== 0n; depth++) {
    parts.unshift(yield* session.space.string(node.pointer('name'), 256));
    node = yield* session.object('kernfs', node.pointer('parent'));
  }
  return `/${parts.join('/')}`;
}

/** docker-ID.scope, cri-containerd-ID.scope, libpod-ID.scope, crio-ID, or the bare ID; also lxc.payload.NAME. */
const RUNTIME_ID = /(?:^|[/:.-])([0-9a-f]{64})(?:\.scope)?(?:$|\/)/;
const LXC_NAME = /\/lxc(?:\.payload)?[./]([^/]+)/;

/** The id of the container that a control group belongs to; empty when it is none. */
export function containerOf(path: string): string {
  return RUNTIME_ID.exec(path)?.[1] ?? LXC_NAME.exec(path)?.[1] ?? '';
}
