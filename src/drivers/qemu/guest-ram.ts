import type { Awaitable } from '../../awaitable.ts';
import { type BackedRegion, RegionMemory } from '../../machine/region-memory.ts';
import { parseMemoryTree, type RamRange } from './memory-map.ts';
import type { QmpConnection } from './qmp.ts';
import { openRam, type RamSource } from './ram.ts';
import type { Workspace } from './workspace.ts';

/** Writes `from` at `gpa`, which is at `offset` of `source`. */
export type RamWrite = (
  gpa: number,
  from: Uint8Array,
  source: RamSource,
  offset: number,
) => Awaitable<boolean>;

/** A guest's RAM: where it is in the guest's memory, and how its bytes are reached. Both change when memory is plugged in or out. */
export class GuestRam {
  readonly memory = new RegionMemory([]);
  readonly #qmp: QmpConnection;
  readonly #pid: number | undefined;
  readonly #workspace: Workspace;
  readonly #write: RamWrite;
  readonly #sources = new Map<string, RamSource>();

  /** There is none before the first {@link look}. */
  constructor(qmp: QmpConnection, pid: number | undefined, workspace: Workspace, write: RamWrite) {
    this.#qmp = qmp;
    this.#pid = pid;
    this.#workspace = workspace;
    this.#write = write;
  }

  /** How it is read, one sentence a RAM block. */
  get access(): string[] {
    return [...this.#sources].map(([block, { description }]) => `${block}: ${description}`);
  }

  /** Finds out what there is now: regions that have gone are not read any more, and new ones are. */
  async look(): Promise<void> {
    const ranges = parseMemoryTree(await this.#qmp.hmp('info mtree -f'));
    const fresh = ranges.filter(({ block }) => !this.#sources.has(block));
    for (const [block, source] of await openRam(fresh, this.#qmp, this.#pid, this.#workspace))
      this.#sources.set(block, source);
    this.memory.setRegions(ranges.map((range) => this.#region(range)));
    for (const [block, source] of this.#sources) {
      if (ranges.some((range) => range.block === block)) continue;
      this.#sources.delete(block);
      source.close();
    }
  }

  close(): void {
    for (const source of this.#sources.values()) source.close();
  }

  #region({ gpa, size, readonly, block, offset }: RamRange): BackedRegion {
    const source = this.#sources.get(block)!;
    const backend = {
      read: (at: number, into: Uint8Array) => source.read(offset + at, into),
      write: (at: number, from: Uint8Array) => this.#write(gpa + at, from, source, offset + at),
      nextData: (at: number) => (source.nextData ? (source.nextData(offset + at) ?? Infinity) - offset : at),
    };
    return { gpa, size, readonly, backend };
  }
}
