import { type Awaitable, repeat, then } from '../awaitable.ts';
import type { Gpa, Gva } from './address.ts';
import type { PhysicalMemory } from './memory.ts';
import { release, startWalk } from './page-walk.ts';
import type { Paging } from './paging.ts';

const GVA_END = 1n << 64n;

/** The bytes of a virtual range that are contiguous in guest-physical memory: `size` bytes at `gpa`. */
type Access = (gpa: Gpa, at: number, size: number) => Awaitable<boolean>;

/** Calls `access` for each page of `length` bytes from `gva` on; false when one has no translation or fails. */
function eachPage(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
  length: number,
  access: Access,
): Awaitable<boolean> {
  const first = BigInt.asUintN(64, gva);
  if (first + BigInt(length) > GVA_END) return false;
  let at = 0;
  return repeat<boolean>(() => {
    if (at >= length) return true;
    return then(startWalk(memory, paging, first + BigInt(at)), (walk) => {
      const { gpa, fault, pageSize } = walk;
      release(walk);
      if (fault !== undefined) return false;
      const start = at;
      at = Math.min(length, start + pageSize - (gpa % pageSize));
      return then(access(gpa, start, at - start), (done) => (done ? undefined : false));
    });
  });
}

function part(bytes: Uint8Array, at: number, size: number): Uint8Array {
  return size === bytes.length ? bytes : bytes.subarray(at, at + size);
}

/**
 * Fills `into` from `gva` on, across pages. False when any byte of it is not mapped or not backed, or the range
 * goes beyond the last address; `into` is then unspecified. Rights are not checked.
 */
export function readVirtual(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
  into: Uint8Array,
): Awaitable<boolean> {
  return eachPage(memory, paging, gva, into.length, (gpa, at, size) =>
    memory.read(gpa, part(into, at, size)),
  );
}

/**
 * Writes `from` at `gva`, across pages. False, with nothing written, when a page of it is not mapped. False, too,
 * when memory refuses one (read-only, a device); pages before that one are then written. Rights are not checked.
 */
export function writeVirtual(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
  from: Uint8Array,
): Awaitable<boolean> {
  const pages: { gpa: Gpa; at: number; size: number }[] = [];
  const found = eachPage(memory, paging, gva, from.length, (gpa, at, size) => {
    pages.push({ gpa, at, size });
    return true;
  });
  let next = 0;
  return then(found, (mapped) => {
    if (!mapped) return false;
    return repeat<boolean>(() => {
      const page = pages[next++];
      if (page === undefined) return true;
      return then(memory.write(page.gpa, part(from, page.at, page.size)), (done) =>
        done ? undefined : false,
      );
    });
  });
}
