import { type Awaitable, repeat, then } from '../awaitable.ts';
import { type Gpa, type Gva, PAGE_SIZE } from './address.ts';
import type { PhysicalMemory } from './memory.ts';
import { locatePage } from './page-walk.ts';
import type { Paging } from './paging.ts';
import type { Tlb } from './tlb.ts';

const GVA_END = 1n << 64n;
const PAGE_MASK = BigInt(PAGE_SIZE - 1);

/** The bytes of a virtual range that are contiguous in guest-physical memory: `size` bytes at `gpa`. */
type Access = (gpa: Gpa, at: number, size: number) => Awaitable<boolean>;

/** Calls `access` for each page of `length` bytes from `gva` on; false when one has no translation or fails. */
function eachPage(
  memory: PhysicalMemory,
  paging: Paging,
  tlb: Tlb | undefined,
  gva: Gva,
  length: number,
  access: Access,
): Awaitable<boolean> {
  const first = BigInt.asUintN(64, gva);
  if (first + BigInt(length) > GVA_END) return false;
  const offset = Number(first & PAGE_MASK);
  let at = 0;
  return repeat<boolean>(() => {
    if (at >= length) return true;
    const address = at === 0 ? first : first + BigInt(at);
    return then(tlb ? tlb.locate(paging, address) : locatePage(memory, paging, address), (page) => {
      if (page === undefined) return false;
      const start = at;
      const gpa = page.gpa + ((offset + start) % PAGE_SIZE);
      at = Math.min(length, start + page.pageSize - (gpa % page.pageSize));
      return then(access(gpa, start, at - start), (done) => (done ? undefined : false));
    });
  });
}

function part(bytes: Uint8Array, at: number, size: number): Uint8Array {
  return size === bytes.length ? bytes : bytes.subarray(at, at + size);
}

/**
 * Fills `into` from `gva` on, across pages. False when any byte of it is not mapped or not backed, or the range
 * goes beyond the last address; `into` is then unspecified. Rights are not checked. With a `tlb` (of the same memory)
 * translations come from there.
 */
export function readVirtual(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
  into: Uint8Array,
  tlb?: Tlb,
): Awaitable<boolean> {
  return eachPage(memory, paging, tlb, gva, into.length, (gpa, at, size) =>
    memory.read(gpa, part(into, at, size)),
  );
}

/**
 * Writes `from` at `gva`, across pages. False, with nothing written, when a page of it is not mapped. False, too,
 * when memory refuses one (read-only, a device); pages before that one are then written. Rights are not checked; `tlb` as for {@link readVirtual}.
 */
export function writeVirtual(
  memory: PhysicalMemory,
  paging: Paging,
  gva: Gva,
  from: Uint8Array,
  tlb?: Tlb,
): Awaitable<boolean> {
  const pages: { gpa: Gpa; at: number; size: number }[] = [];
  const found = eachPage(memory, paging, tlb, gva, from.length, (gpa, at, size) => {
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
