import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import type { Awaitable } from '../../awaitable.ts';
import { messageOf } from '../../error.ts';
import { type OpenedFile, openMapped } from '../../system/mapped-by.ts';
import { cannotShrink, MappedFile, nextData } from '../../system/mapped-file.ts';
import { type Mapping, parseMappings } from '../../system/proc.ts';
import { parseHostAddress, type RamRange } from './memory-map.ts';
import type { QmpConnection } from './qmp.ts';
import type { Workspace } from './workspace.ts';

/** A way to the bytes of one RAM block; offsets are into the block. */
export interface RamSource {
  /** For people: how the block is read, and why not in a better way. */
  readonly description: string;
  read(offset: number, into: Uint8Array): Awaitable<boolean>;
  /** Stores bytes without telling the vCPUs; undefined where only QEMU itself can write. */
  readonly write?: (offset: number, from: Uint8Array) => boolean;
  /** Where the next bytes that may not be zero are, where the source can tell; undefined: nowhere. */
  readonly nextData?: (offset: number) => number | undefined;
  close(): void;
}

/**
 * The fastest source for each RAM block of `ranges`: the shared file behind it, QEMU's own memory, or, when this
 * process may use neither, QEMU's `pmemsave`.
 */
export async function openRam(
  ranges: readonly RamRange[],
  qmp: QmpConnection,
  pid: number | undefined,
  workspace: Workspace,
): Promise<Map<string, RamSource>> {
  const sources = new Map<string, RamSource>();
  let reason = "QEMU's process was not found on this host";
  let mappings: Mapping[] = [];
  if (pid !== undefined) {
    try {
      mappings = parseMappings(readFileSync(`/proc/${pid}/maps`, 'latin1'));
    } catch (error) {
      reason = `QEMU's memory map cannot be read: ${messageOf(error)}`;
    }
  }
  for (const range of ranges) {
    if (sources.has(range.block)) continue;
    const blockRanges = ranges.filter(({ block }) => block === range.block);
    const address = parseHostAddress(await qmp.hmp(`gpa2hva 0x${range.gpa.toString(16)}`));
    let source: RamSource | undefined;
    if (pid !== undefined && address !== undefined && mappings.length > 0) {
      const opened = openProcessRam(pid, mappings, address - range.offset, blockRanges);
      if (typeof opened === 'string') reason = opened;
      else source = opened;
    }
    sources.set(range.block, source ?? new MonitorRam(blockRanges, qmp, workspace, reason));
  }
  return sources;
}

/** `base` is where the block starts in QEMU's address space. The reason when it cannot be opened. */
function openProcessRam(
  pid: number,
  mappings: readonly Mapping[],
  base: number,
  ranges: readonly RamRange[],
): RamSource | string {
  const first = Math.min(...ranges.map(({ offset }) => offset));
  const end = Math.max(...ranges.map(({ offset, size }) => offset + size));
  const mapping = mappings.find(({ start, end: mapped }) => base + first >= start && base + first < mapped);
  if (mapping === undefined) return "QEMU's memory map does not hold the guest's memory";
  const file = mapping.permissions.endsWith('s') ? openMapped(pid, mapping) : undefined;
  if (file !== undefined) {
    const start = base - mapping.start + mapping.offset;
    if (file.size >= start + end) return new SharedRam(file, start);
    closeSync(file.fd);
  }
  return openProcessMemory(pid, base);
}

/** A descriptor with a constant distance between an offset in the block and one in the file. */
class FileRam implements RamSource {
  readonly description: string;
  readonly write?: (offset: number, from: Uint8Array) => boolean;
  readonly #fd: number;
  readonly #base: number;

  constructor(description: string, fd: number, base: number, writable: boolean) {
    this.description = description;
    this.#fd = fd;
    this.#base = base;
    if (writable) this.write = this.#write;
  }

  read(offset: number, into: Uint8Array): boolean {
    try {
      return readSync(this.#fd, into, 0, into.length, this.#base + offset) === into.length;
    } catch {
      return false;
    }
  }

  readonly #write = (offset: number, from: Uint8Array): boolean => {
    try {
      return writeSync(this.#fd, from, 0, from.length, this.#base + offset) === from.length;
    } catch {
      return false;
    }
  };

  close(): void {
    closeSync(this.#fd);
  }
}

/** Reads at least this long go through a mapping: it costs more to set up than a few small reads. */
const MAPPED_READ = 16 * 1024;
/** Only who reads more than this gets back what the mapping, with a fault for each new page, costs. */
const UNMAPPED_BYTES = 256 << 20;

/**
 * The file that QEMU shares the guest's memory through. When much is read it is mapped, if it is sealed against
 * shrinking: reading beyond the end of a mapped file would end this process (SIGBUS).
 */
class SharedRam extends FileRam {
  readonly #fd: number;
  readonly #base: number;
  readonly #size: number;
  /** What long reads have read so far. */
  #bytes = 0;
  /** Null when the file cannot be mapped. */
  #mapped: MappedFile | undefined | null;

  constructor({ fd, size, writable }: OpenedFile, base: number) {
    super('shared memory', fd, base, writable);
    this.#fd = fd;
    this.#base = base;
    this.#size = size;
  }

  override read(offset: number, into: Uint8Array): boolean {
    if (into.length >= MAPPED_READ) {
      this.#bytes += into.length;
      if (this.#map()?.copy(this.#base + offset, into)) return true;
    }
    return super.read(offset, into);
  }

  nextData = (offset: number): number | undefined => {
    // The C library is worth loading for who reads much.
    if (this.#bytes <= UNMAPPED_BYTES) return offset;
    try {
      const next = nextData(this.#fd, this.#base + offset);
      return next === undefined ? undefined : Math.max(offset, next - this.#base);
    } catch {
      // There is no C library.
      return offset;
    }
  };

  #map(): MappedFile | undefined {
    if (this.#mapped === undefined && this.#bytes > UNMAPPED_BYTES)
      this.#mapped = (cannotShrink(this.#fd) ? MappedFile.map(this.#fd, this.#size) : undefined) ?? null;
    return this.#mapped ?? undefined;
  }

  override close(): void {
    this.#mapped?.close();
    this.#mapped = null;
    super.close();
  }
}

function openProcessMemory(pid: number, base: number): RamSource | string {
  const path = `/proc/${pid}/mem`;
  try {
    const source = new FileRam(path, openSync(path, 'r+'), base, true);
    if (source.read(0, new Uint8Array(1))) return source;
    source.close();
    return `${path} opens but cannot be read: the kernel restricts it (Yama ptrace_scope, or a security module)`;
  } catch (error) {
    return `${path}: ${messageOf(error)}; it takes CAP_SYS_PTRACE, or QEMU's user and Yama ptrace_scope 0`;
  }
}

/** Reads through QEMU's `pmemsave`, which needs no right on the process but a directory that both can use. */
class MonitorRam implements RamSource {
  readonly description: string;
  readonly #ranges: readonly RamRange[];
  readonly #qmp: QmpConnection;
  readonly #workspace: Workspace;

  constructor(ranges: readonly RamRange[], qmp: QmpConnection, workspace: Workspace, reason: string) {
    this.description = `QEMU's monitor (slow), because ${reason}`;
    this.#ranges = ranges;
    this.#qmp = qmp;
    this.#workspace = workspace;
  }

  async read(offset: number, into: Uint8Array): Promise<boolean> {
    const range = this.#ranges.find((candidate) => {
      const at = offset - candidate.offset;
      return at >= 0 && at + into.length <= candidate.size;
    });
    if (range === undefined) return false;
    const gpa = range.gpa + offset - range.offset;
    return this.#workspace.receive(
      into.length,
      (filename) => this.#qmp.execute('pmemsave', { val: gpa, size: into.length, filename }),
      (bytes) => {
        if (bytes.length !== into.length) return false;
        into.set(bytes);
        return true;
      },
    );
  }

  close(): void {}
}
