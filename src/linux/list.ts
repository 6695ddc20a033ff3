import type { Gva } from '../machine/index.ts';
import { Bounds, isKernelPointer } from '../reading/bounds.ts';
import type { Walk } from '../reading/walk.ts';
import type { FieldName, StructName } from './layout.ts';
import type { Obj, Session } from './session.ts';

/*
 * The kernel's containers. Each walk ends: at what it has seen before, at the limit, when the time is up, and at a
 * pointer that leads nowhere. What it found until then is the answer, and the session knows why there is no more.
 */

/** The entries of a circular list_head, without its head: addresses of the links. */
export function* listLinks(session: Session, head: Gva, what: string): Walk<Gva[]> {
  const links: Gva[] = [];
  const bounds = new Bounds(session, what);
  const walk = function* (): Walk<undefined> {
    for (let link = yield* session.space.u64(head); link !== head; link = yield* session.space.u64(link)) {
      if (!bounds.allows(link)) return;
      links.push(link);
    }
  };
  yield* session.attempt(what, walk(), undefined);
  return links;
}

/** The structures of a circular list, by the list_head that each has in `field`. */
export function* listOf<S extends StructName>(
  session: Session,
  head: Gva,
  name: S,
  field: FieldName<S>,
  what: string,
): Walk<Obj<S>[]> {
  const objects: Obj<S>[] = [];
  for (const link of yield* listLinks(session, head, what)) {
    const object = yield* session.attempt(what, session.around(name, field, link), undefined);
    if (object !== undefined) objects.push(object);
  }
  return objects;
}

/** The nodes of an hlist, from its first one on. A nulls list ends at an odd value. */
export function* chain(session: Session, first: Gva, bounds: Bounds, what: string): Walk<Gva[]> {
  const nodes: Gva[] = [];
  const walk = function* (): Walk<undefined> {
    for (let node = first; node !== 0n && (node & 1n) === 0n; node = yield* session.space.u64(node)) {
      if (!bounds.allows(node)) return;
      nodes.push(node);
    }
  };
  yield* session.attempt(what, walk(), undefined);
  return nodes;
}

/** The nodes of a red-black tree in order. */
export function* treeNodes(session: Session, root: Gva, what: string): Walk<Gva[]> {
  const nodes: Gva[] = [];
  const bounds = new Bounds(session, what);
  const path: { gva: Gva; right: Gva }[] = [];
  const walk = function* (): Walk<undefined> {
    let next = root;
    for (;;) {
      while (next !== 0n) {
        if (!bounds.allows(next)) return;
        const node = yield* session.object('rbNode', next);
        path.push({ gva: next, right: node.pointer('right') });
        next = node.pointer('left');
      }
      const done = path.pop();
      if (done === undefined) return;
      nodes.push(done.gva);
      next = done.right;
    }
  };
  yield* session.attempt(what, walk(), undefined);
  return nodes;
}

const SLOTS = 64;
/** Six bits a level: more than enough for 64-bit indexes. */
const MAX_LEVELS = 12;

/** What an IDR holds (an xarray, or a radix tree before 4.20), with its numbers. */
export function* idrEntries(
  session: Session,
  tree: Gva,
  what: string,
): Walk<{ readonly id: number; readonly entry: Gva }[]> {
  const entries: { id: number; entry: Gva }[] = [];
  const bounds = new Bounds(session, what);
  // The lowest two bits of a pointer to a node: 2 in an xarray, 1 in a radix tree.
  const tag = session.kernel.layouts.get('xarray').type === 'xarray' ? 2n : 1n;
  const visit = function* (entry: Gva, id: number, level: number): Walk<boolean> {
    if (entry === 0n) return true;
    const isNode = (entry & 3n) === tag && entry > 4096n;
    if (!isNode) {
      if (isKernelPointer(entry, 1n)) entries.push({ id, entry });
      return entries.length < session.limit;
    }
    const gva = entry - tag;
    if (level >= MAX_LEVELS || !bounds.allows(gva)) return false;
    const node = yield* session.object('xarrayNode', gva);
    const slots = node.address('slots');
    const step = 2 ** node.number('shift');
    for (let i = 0; i < SLOTS; i++) {
      const next = yield* session.space.u64(slots + BigInt(8 * i));
      if (!(yield* visit(next, id + i * step, level + 1))) return false;
    }
    return true;
  };
  const walk = function* (): Walk<undefined> {
    const head = yield* session.object('xarray', tree);
    yield* visit(head.pointer('head'), 0, 0);
  };
  yield* session.attempt(what, walk(), undefined);
  return entries;
}
