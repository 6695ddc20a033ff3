import { attempt } from '../awaitable.ts';
import { GPA_LIMIT, type Gpa, type MemoryRegion, PAGE_SIZE } from '../machine/index.ts';
import type { MemoryMapEntry } from '../wire/index.ts';
import type { GuestMemory } from './memory.ts';

const MEMORY = 1;
const FIRST_SAMPLE = 2 ** 20;
/** PCs have their memory from 0 up to a hole for devices, and the rest from here on. */
const HIGH_START = 2 ** 32;
/** Where a search is cut at once: one round trip for each of these. */
const CUTS = 15;

/** The regions of a memory map: whole pages of its entries of type memory, in order and not overlapping. */
export function regionsOf(map: readonly MemoryMapEntry[]): MemoryRegion[] {
  const regions: MemoryRegion[] = [];
  let end = 0;
  for (const entry of [...map].sort((a, b) => a.address - b.address)) {
    const first = Math.max(end, Math.ceil(entry.address / PAGE_SIZE) * PAGE_SIZE);
    const limit = Math.floor(Math.min(GPA_LIMIT, entry.address + entry.length) / PAGE_SIZE) * PAGE_SIZE;
    if (entry.type !== MEMORY || limit <= first) continue;
    regions.push({ gpa: first, size: limit - first, readonly: false });
    end = limit;
  }
  return regions;
}

/**
 * Finds out by reading single bytes where there is memory: from 0 on, and from 4 GiB on, each in one piece. Takes
 * some twenty round trips. Empty when nothing may be read.
 *
 * `limit` is an address that no memory reaches.
 */
export async function findRegions(memory: GuestMemory, limit = GPA_LIMIT): Promise<MemoryRegion[]> {
  const low = await endOfRun(memory, 0, Math.min(HIGH_START, limit));
  const high = limit > HIGH_START ? await endOfRun(memory, HIGH_START, limit) : HIGH_START;
  const regions = [];
  if (low > 0) regions.push({ gpa: 0, size: low, readonly: false });
  if (high > HIGH_START) regions.push({ gpa: HIGH_START, size: high - HIGH_START, readonly: false });
  return regions;
}

/** Where the memory that starts at `start` ends, `limit` at most; `start` when there is none. */
async function endOfRun(memory: GuestMemory, start: Gpa, limit: Gpa): Promise<Gpa> {
  const samples = [start];
  for (let step = FIRST_SAMPLE; start + step < limit; step *= 2) samples.push(start + step);
  const present = await areThere(memory, samples);
  if (!present[0]) return start;
  const last = present.lastIndexOf(true);
  return searchEnd(memory, samples[last]!, samples[last + 1] ?? limit);
}

/** `there` is memory and `beyond` is not, or is the limit: the first page in between that is not. */
async function searchEnd(memory: GuestMemory, there: Gpa, beyond: Gpa): Promise<Gpa> {
  let first = there / PAGE_SIZE + 1;
  let limit = Math.floor(beyond / PAGE_SIZE);
  while (first < limit) {
    const step = Math.max(1, Math.ceil((limit - first) / (CUTS + 1)));
    const cuts: number[] = [];
    for (let page = first + step - 1; page < limit; page += step) cuts.push(page);
    const present = await areThere(
      memory,
      cuts.map((page) => page * PAGE_SIZE),
    );
    const missing = present.indexOf(false);
    if (missing < 0) first = cuts.at(-1)! + 1;
    else [first, limit] = [missing === 0 ? first : cuts[missing - 1]! + 1, cuts[missing]!];
  }
  return limit * PAGE_SIZE;
}

function areThere(memory: GuestMemory, gpas: readonly Gpa[]): Promise<boolean[]> {
  return Promise.all(
    gpas.map((gpa) =>
      attempt(
        () => memory.read(gpa, new Uint8Array(1)),
        () => false,
      ),
    ),
  );
}
