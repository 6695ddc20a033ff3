import { type Awaitable, repeat, then } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { GPA_LIMIT, type Gpa, PAGE_SIZE } from './address.ts';
import { copyBytes } from './copy.ts';
import type { MemoryRegion, PhysicalMemory } from './memory.ts';

/** What holds the bytes of one region. It is never asked for bytes outside the region. */
export interface RegionBackend {
  /** Fills `into` from `offset` (bytes from the start of the region). False when that is not possible now. */
  read(offset: number, into: Uint8Array): Awaitable<boolean>;
  /** Writes all of `from` at `offset`, or nothing and answers false. */
  write?(offset: number, from: Uint8Array): Awaitable<boolean>;
  /** The bytes themselves, not copied. */
  view?(offset: number, size: number): Uint8Array | undefined;
  /** The first offset from `offset` on that may hold anything but zeros; the region's size when there is none. */
  nextData?(offset: number): number;
}

export interface BackedRegion extends MemoryRegion {
  readonly backend: RegionBackend;
}

/** A region whose memory is `bytes`, as many as the region has. */
export function bytesBackend(bytes: Uint8Array): RegionBackend {
  return {
    read(offset, into) {
      copyBytes(bytes, offset, into, 0, into.length);
      return true;
    },
    write(offset, from) {
      copyBytes(from, 0, bytes, offset, from.length);
      return true;
    },
    view: (offset, size) => bytes.subarray(offset, offset + size),
  };
}

/** The part of a read or write that lies in one region. */
interface Piece {
  readonly region: BackedRegion;
  readonly offset: number;
  /** Where the piece starts in the caller's buffer. */
  readonly at: number;
  readonly size: number;
}

const NOWHERE: BackedRegion = { gpa: 0, size: 0, readonly: true, backend: { read: () => false } };

/**
 * Guest-physical memory made of regions, each with its own backend.
 *
 * An access inside one region goes straight to its backend and is synchronous when the backend is. One that
 * crosses regions is split here, after all of it was found to be backed.
 */
export class RegionMemory implements PhysicalMemory {
  #regions: readonly BackedRegion[] = [];
  /** Where the last access was; the next one is most likely there too. */
  #recent = NOWHERE;

  /** `regions` as for {@link setRegions}. */
  constructor(regions: readonly BackedRegion[]) {
    this.setRegions(regions);
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /**
   * Replaces all regions (hotplug). They must be page-aligned, sorted by gpa and not overlap, else a KvmiError
   * with code E_MEMORY_REGIONS is thrown and nothing changes. An access under way ends with the old ones.
   */
  setRegions(regions: readonly BackedRegion[]): void {
    let end = 0;
    for (const { gpa, size } of regions) {
      const aligned = gpa % PAGE_SIZE === 0 && size % PAGE_SIZE === 0;
      if (!aligned || size <= 0 || gpa < end || gpa + size > GPA_LIMIT) {
        const what = `0x${gpa.toString(16)}, ${size} bytes`;
        throw new KvmiError(
          'E_MEMORY_REGIONS',
          `memory region at ${what}: not aligned, not sorted, or too large`,
          {
            hint: 'Regions are multiples of 4096 bytes, sorted by gpa, do not overlap and end below 2^52.',
            data: { gpa, size },
          },
        );
      }
      end = gpa + size;
    }
    this.#regions = [...regions];
    this.#recent = NOWHERE;
  }

  read(gpa: Gpa, into: Uint8Array): Awaitable<boolean> {
    if (into.length === 0) return true;
    const region = this.#find(gpa);
    if (region === undefined) return false;
    const offset = gpa - region.gpa;
    if (into.length <= region.size - offset) return region.backend.read(offset, into);
    const pieces = this.#split(gpa, into.length);
    if (pieces === undefined) return false;
    return each(pieces, ({ region, offset, at, size }) =>
      region.backend.read(offset, into.subarray(at, at + size)),
    );
  }

  write(gpa: Gpa, from: Uint8Array): Awaitable<boolean> {
    if (from.length === 0) return true;
    const region = this.#find(gpa);
    if (region === undefined) return false;
    const offset = gpa - region.gpa;
    if (from.length <= region.size - offset) return writeTo(region, offset, from);
    const pieces = this.#split(gpa, from.length);
    if (!pieces?.every((piece) => isWritable(piece.region))) return false;
    return each(pieces, ({ region, offset, at, size }) =>
      writeTo(region, offset, from.subarray(at, at + size)),
    );
  }

  view(gpa: Gpa, size: number): Uint8Array | undefined {
    const region = this.#find(gpa);
    if (region === undefined) return undefined;
    const offset = gpa - region.gpa;
    return size <= region.size - offset ? region.backend.view?.(offset, size) : undefined;
  }

  nextData(gpa: Gpa): Gpa | undefined {
    for (const region of this.#regions) {
      const offset = Math.max(0, gpa - region.gpa);
      if (offset >= region.size) continue;
      const next = region.backend.nextData?.(offset) ?? offset;
      if (next < region.size) return region.gpa + next;
    }
    return undefined;
  }

  #find(gpa: Gpa): BackedRegion | undefined {
    const recent = this.#recent;
    if (gpa >= recent.gpa && gpa < recent.gpa + recent.size) return recent;
    const index = this.#indexOf(gpa);
    if (index === undefined) return undefined;
    this.#recent = this.#regions[index]!;
    return this.#recent;
  }

  #indexOf(gpa: Gpa): number | undefined {
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const region = this.#regions[middle]!;
      if (gpa < region.gpa) high = middle;
      else if (gpa < region.gpa + region.size) return middle;
      else low = middle + 1;
    }
    return undefined;
  }

  /** Undefined when there is a hole in the range. */
  #split(gpa: Gpa, length: number): Piece[] | undefined {
    const pieces: Piece[] = [];
    let index = this.#indexOf(gpa)!;
    for (let at = 0; at < length; index++) {
      const region = this.#regions[index];
      if (region === undefined || region.gpa > gpa + at) return undefined;
      const offset = gpa + at - region.gpa;
      const size = Math.min(length - at, region.size - offset);
      pieces.push({ region, offset, at, size });
      at += size;
    }
    return pieces;
  }
}

function isWritable(region: BackedRegion): boolean {
  return !region.readonly && region.backend.write !== undefined;
}

function writeTo(region: BackedRegion, offset: number, from: Uint8Array): Awaitable<boolean> {
  return isWritable(region) && region.backend.write!(offset, from);
}

/** Does `access` piece by piece, until one fails. */
function each(pieces: readonly Piece[], access: (piece: Piece) => Awaitable<boolean>): Awaitable<boolean> {
  let next = 0;
  return repeat<boolean>(() => {
    const piece = pieces[next++];
    if (piece === undefined) return true;
    return then(access(piece), (done) => (done ? undefined : false));
  });
}
