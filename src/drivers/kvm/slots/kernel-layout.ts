import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { KvmiError, messageOf } from '../../../error.ts';
import { readText } from '../../../system/proc.ts';

/*
 * Where the kernel has what: offsets of structure members from BTF, the type information that the kernel
 * carries (Documentation/bpf/btf.rst).
 */

const FOLDER = '/sys/kernel/btf';
const HEADER_SIZE = 24;
const KIND = { STRUCT: 4, UNION: 5, TYPEDEF: 8, VOLATILE: 9, CONST: 10, RESTRICT: 11, TAG: 18 } as const;
/** What follows the 12 bytes of a type, by kind: a fixed size, or one for each element. */
const FIXED_SIZE: Readonly<Record<number, number>> = { 1: 4, 3: 12, 14: 4, 17: 4 };
const ELEMENT_SIZE: Readonly<Record<number, number>> = { 4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12 };
const MODIFIERS: ReadonlySet<number> = new Set([
  KIND.TYPEDEF,
  KIND.VOLATILE,
  KIND.CONST,
  KIND.RESTRICT,
  KIND.TAG,
]);
const AGGREGATES: ReadonlySet<number> = new Set([KIND.STRUCT, KIND.UNION]);
const MEMBER_SIZE = 12;

/** The structures and members that are needed, as `structure.member`; a structure's own size as its name alone. */
export type Layout = Readonly<Record<string, number>>;

class TypeInfo {
  readonly #bytes: Buffer;
  readonly #strings: Buffer;
  readonly #stringBase: number;
  readonly #base: TypeInfo | undefined;
  readonly #firstId: number;
  /** Where each type is. */
  readonly #offsets: number[] = [];

  constructor(file: string, base?: TypeInfo) {
    const bytes = readFileSync(file);
    const typesAt = HEADER_SIZE + bytes.readUInt32LE(8);
    const typesEnd = typesAt + bytes.readUInt32LE(12);
    const stringsAt = HEADER_SIZE + bytes.readUInt32LE(16);
    this.#bytes = bytes;
    this.#strings = bytes.subarray(stringsAt, stringsAt + bytes.readUInt32LE(20));
    this.#base = base;
    this.#stringBase = base ? base.#strings.length : 0;
    this.#firstId = base ? base.#firstId + base.#offsets.length : 1;
    for (let at = typesAt; at < typesEnd; ) {
      this.#offsets.push(at);
      const info = bytes.readUInt32LE(at + 4);
      const kind = (info >>> 24) & 31;
      at += 12 + (FIXED_SIZE[kind] ?? 0) + (ELEMENT_SIZE[kind] ?? 0) * (info & 0xffff);
    }
  }

  /** The structure called `name`, by a search for its name first: there are a hundred thousand types. */
  find(name: string): { owner: TypeInfo; at: number } | undefined {
    const wanted = this.#nameOffsets(name);
    for (const at of this.#offsets) {
      if (!wanted.has(this.#bytes.readUInt32LE(at))) continue;
      if (this.#kind(at) === KIND.STRUCT && this.#bytes.readUInt32LE(at + 8) > 0) return { owner: this, at };
    }
    return this.#base?.find(name);
  }

  #nameOffsets(name: string): Set<number> {
    const offsets = new Set<number>();
    const needle = Buffer.from(`\0${name}\0`);
    for (let at = this.#strings.indexOf(needle); at >= 0; at = this.#strings.indexOf(needle, at + 1)) {
      offsets.add(at + 1 + this.#stringBase);
    }
    const base = this.#base;
    if (base) for (const offset of base.#nameOffsets(name)) offsets.add(offset);
    return offsets;
  }

  #kind(at: number): number {
    return (this.#bytes.readUInt32LE(at + 4) >>> 24) & 31;
  }

  #string(offset: number): string {
    const base = this.#base;
    if (base && offset < this.#stringBase) return base.#string(offset);
    const at = offset - this.#stringBase;
    return this.#strings.toString('latin1', at, this.#strings.indexOf(0, at));
  }

  #type(id: number): { owner: TypeInfo; at: number } | undefined {
    const base = this.#base;
    if (base && id < this.#firstId) return base.#type(id);
    const at = this.#offsets[id - this.#firstId];
    return at === undefined ? undefined : { owner: this, at };
  }

  #withoutModifiers(id: number): { owner: TypeInfo; at: number } | undefined {
    let type = this.#type(id);
    while (type && MODIFIERS.has(type.owner.#kind(type.at))) {
      type = this.#type(type.owner.#bytes.readUInt32LE(type.at + 8));
    }
    return type;
  }

  size(at: number): number {
    return this.#bytes.readUInt32LE(at + 8);
  }

  /** The offset of a member in bytes, also of one in an anonymous structure or union. */
  memberOffset(at: number, member: string): number | undefined {
    const info = this.#bytes.readUInt32LE(at + 4);
    const bitfields = info >>> 31 === 1;
    for (let i = 0; i < (info & 0xffff); i++) {
      const entry = at + 12 + i * MEMBER_SIZE;
      const raw = this.#bytes.readUInt32LE(entry + 8);
      const offset = (bitfields ? raw & 0xffffff : raw) / 8;
      const name = this.#string(this.#bytes.readUInt32LE(entry));
      if (name === member) return offset;
      if (name !== '') continue;
      const inner = this.#withoutModifiers(this.#bytes.readUInt32LE(entry + 4));
      const isAggregate = inner && AGGREGATES.has(inner.owner.#kind(inner.at));
      const found = isAggregate ? inner.owner.memberOffset(inner.at, member) : undefined;
      if (found !== undefined) return offset + found;
    }
    return undefined;
  }
}

/**
 * Offsets (`kvm.memslots`) and sizes (`kvm_memory_slot`) in the running kernel. Kept in a file between runs, because
 * reading the type information takes a while.
 *
 * @throws KvmiError with code E_NO_BTF when the kernel has no type information or not that member.
 */
export function kernelLayout(names: readonly string[]): Layout {
  const cache = cacheFile();
  const cached = cache && readCache(cache, names);
  if (cached) return cached;
  const layout = readLayout(names);
  if (cache) writeCache(cache, layout);
  return layout;
}

function readLayout(names: readonly string[]): Layout {
  let info: TypeInfo;
  try {
    info = new TypeInfo(join(FOLDER, 'vmlinux'));
    const module = join(FOLDER, 'kvm');
    if (statSync(module, { throwIfNoEntry: false })) info = new TypeInfo(module, info);
  } catch (error) {
    throw new KvmiError('E_NO_BTF', `the kernel's type information cannot be read: ${messageOf(error)}`, {
      hint: 'It needs a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it.',
      cause: error,
    });
  }
  return Object.fromEntries(names.map((name) => [name, lookUp(info, name)]));
}

function lookUp(info: TypeInfo, name: string): number {
  const [structure, member] = name.split('.') as [string, string?];
  const type = info.find(structure);
  const value =
    type && (member === undefined ? type.owner.size(type.at) : type.owner.memberOffset(type.at, member));
  if (value === undefined) {
    throw new KvmiError('E_NO_BTF', `this kernel has no ${name} that its type information tells of`);
  }
  return value;
}

/** One file for each kernel build. */
function cacheFile(): string | undefined {
  const release = readText('/proc/sys/kernel/osrelease')?.trim();
  const size = statSync(join(FOLDER, 'vmlinux'), { throwIfNoEntry: false })?.size;
  if (!release || !size) return undefined;
  const folder = process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache');
  return join(folder, 'kvmi', `layout-${release}-${size}.json`);
}

function readCache(file: string, names: readonly string[]): Layout | undefined {
  try {
    const layout = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
    return names.every((name) => Number.isInteger(layout[name])) ? (layout as Layout) : undefined;
  } catch {
    return undefined;
  }
}

function writeCache(file: string, layout: Layout): void {
  try {
    mkdirSync(join(file, '..'), { recursive: true, mode: 0o700 });
    const temporary = `${file}.${process.pid}`;
    writeFileSync(temporary, JSON.stringify(layout), { mode: 0o600 });
    renameSync(temporary, file);
  } catch {
    // Only slower the next time.
  }
}
