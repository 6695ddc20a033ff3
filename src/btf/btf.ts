import { getS32, getU16, getU32 } from '../abi/bytes.ts';
import { KvmiError } from '../error.ts';
import { type EnumType, type Member, type StructType, type Type, type TypeSource, VOID } from './types.ts';

/*
 * BTF, the BPF type format (Documentation/bpf/btf.rst): a header, types numbered from 1 in the order in which they
 * stand there, and strings. A module's BTF goes on with the numbers and the strings of the kernel's.
 */

const MAGIC = 0xeb9f;
const HEADER = 24;
const TYPE = 12;

/** What follows the 12 bytes of a type: so many bytes, and so many for each of `vlen`. */
const KINDS: readonly (readonly [name: string, fixed: number, each: number] | undefined)[] = [
  undefined,
  ['int', 4, 0],
  ['ptr', 0, 0],
  ['array', 12, 0],
  ['struct', 0, 12],
  ['union', 0, 12],
  ['enum', 0, 8],
  ['fwd', 0, 0],
  ['typedef', 0, 0],
  ['volatile', 0, 0],
  ['const', 0, 0],
  ['restrict', 0, 0],
  ['func', 0, 0],
  ['func_proto', 0, 8],
  ['var', 4, 0],
  ['datasec', 0, 12],
  ['float', 0, 0],
  ['decl_tag', 4, 0],
  ['type_tag', 0, 0],
  ['enum64', 0, 12],
];

const KIND = {
  int: 1,
  ptr: 2,
  array: 3,
  struct: 4,
  union: 5,
  enum: 6,
  fwd: 7,
  typedef: 8,
  volatile: 9,
  const: 10,
  restrict: 11,
  func: 12,
  funcProto: 13,
  var: 14,
  float: 16,
  typeTag: 18,
  enum64: 19,
} as const;

/** Which kind is meant by a name that several have. */
const PRECEDENCE: readonly number[] = [
  KIND.struct,
  KIND.union,
  KIND.enum,
  KIND.enum64,
  KIND.typedef,
  KIND.int,
  KIND.float,
];
const MAX_NAME = 512;
/** Modifiers (const, volatile) in a row. */
const MAX_MODIFIERS = 32;

/** One piece of BTF. Types are built when they are asked for. */
export class Btf implements TypeSource {
  readonly bytes: Uint8Array;
  /** Why it was not read to its end: a kind that is not known, or damage. */
  readonly cut: string | undefined;
  readonly #buffer: Buffer;
  readonly #base: Btf | undefined;
  readonly #firstId: number;
  readonly #stringsBase: number;
  readonly #strings: number;
  readonly #stringsEnd: number;
  /** Where type `firstId + i` starts. */
  readonly #starts: Uint32Array;
  readonly #types = new Map<number, Type>();
  #byName: Map<string, number> | undefined;
  #variables: Map<string, number> | undefined;

  /** `base`: the kernel's BTF, when this one is a module's. Throws a KvmiError with code E_BTF when it is none. */
  constructor(bytes: Uint8Array, base?: Btf) {
    this.bytes = bytes;
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#base = base;
    this.#firstId = base?.endId ?? 1;
    this.#stringsBase = base ? base.#stringsBase + base.#stringsEnd - base.#strings : 0;
    if (bytes.length < HEADER || getU16(bytes, 0) !== MAGIC) throw invalid('it does not start with one');
    const header = getU32(bytes, 4);
    const types = header + getU32(bytes, 8);
    const end = types + getU32(bytes, 12);
    this.#strings = header + getU32(bytes, 16);
    this.#stringsEnd = this.#strings + getU32(bytes, 20);
    if (header < HEADER || end > bytes.length || this.#stringsEnd > bytes.length)
      throw invalid('its parts do not fit');
    const { starts, cut } = indexTypes(bytes, types, end);
    this.#starts = starts;
    this.cut = cut;
  }

  /** One more than the last type number. */
  get endId(): number {
    return this.#firstId + this.#starts.length;
  }

  find(name: string): Type | undefined {
    this.#byName ??= this.#indexNames();
    const id = this.#byName.get(name);
    return id === undefined ? this.#base?.find(name) : this.type(id);
  }

  *names(): IterableIterator<string> {
    this.#byName ??= this.#indexNames();
    yield* this.#byName.keys();
  }

  variable(name: string): Type | undefined {
    this.#variables ??= this.#indexVariables();
    const id = this.#variables.get(name);
    return id === undefined ? this.#base?.variable(name) : this.type(id);
  }

  /** The type with this number; void when there is none. */
  type(id: number): Type {
    if (id < this.#firstId) return id === 0 || this.#base === undefined ? VOID : this.#base.type(id);
    const known = this.#types.get(id);
    if (known !== undefined) return known;
    const type = this.#build(id);
    this.#types.set(id, type);
    return type;
  }

  #start(id: number): number | undefined {
    return this.#starts[id - this.#firstId];
  }

  #string(offset: number): string {
    if (offset < this.#stringsBase) return this.#base === undefined ? '' : this.#base.#string(offset);
    const start = this.#strings + offset - this.#stringsBase;
    if (start >= this.#stringsEnd) return '';
    const end = this.#buffer.indexOf(0, start);
    const limit = Math.min(start + MAX_NAME, this.#stringsEnd);
    return this.#buffer.toString('latin1', start, end < 0 || end > limit ? limit : end);
  }

  #indexNames(): Map<string, number> {
    const byName = new Map<string, number>();
    const ranks = new Map<string, number>();
    for (let i = 0; i < this.#starts.length; i++) {
      const at = this.#starts[i]!;
      const rank = PRECEDENCE.indexOf(kindAt(this.bytes, at));
      const offset = getU32(this.bytes, at);
      if (rank < 0 || offset === 0) continue;
      const name = this.#string(offset);
      if (name === '' || (ranks.get(name) ?? Number.POSITIVE_INFINITY) <= rank) continue;
      ranks.set(name, rank);
      byName.set(name, this.#firstId + i);
    }
    return byName;
  }

  #indexVariables(): Map<string, number> {
    const variables = new Map<string, number>();
    for (const at of this.#starts) {
      if (kindAt(this.bytes, at) === KIND.var)
        variables.set(this.#string(getU32(this.bytes, at)), getU32(this.bytes, at + 8));
    }
    return variables;
  }

  #build(id: number): Type {
    const { bytes } = this;
    let at = this.#start(id);
    for (let modifiers = 0; at !== undefined && modifiers < MAX_MODIFIERS; modifiers++) {
      const kind = kindAt(bytes, at);
      const isModifier =
        kind === KIND.const || kind === KIND.volatile || kind === KIND.restrict || kind === KIND.typeTag;
      if (!isModifier) return this.#buildKind(at, kind);
      const target = getU32(bytes, at + 8);
      if (target < this.#firstId) return this.type(target);
      at = this.#start(target);
    }
    return VOID;
  }

  #buildKind(at: number, kind: number): Type {
    const { bytes } = this;
    const name = this.#string(getU32(bytes, at));
    const info = getU32(bytes, at + 4);
    const sizeOrType = getU32(bytes, at + 8);
    const target = () => this.type(sizeOrType);
    switch (kind) {
      case KIND.int: {
        const encoding = (getU32(bytes, at + TYPE) >>> 24) & 15;
        return {
          kind: 'int',
          name,
          size: sizeOrType,
          signed: (encoding & 1) !== 0,
          encoding: (encoding & 4) !== 0 ? 'bool' : name.endsWith('char') ? 'char' : 'number',
        };
      }
      case KIND.ptr:
        return { kind: 'pointer', size: 8, target };
      case KIND.array: {
        const element = getU32(bytes, at + TYPE);
        return {
          kind: 'array',
          count: getU32(bytes, at + TYPE + 8),
          element: () => this.type(element),
        };
      }
      case KIND.struct:
      case KIND.union:
        return this.#buildStruct(at, kind === KIND.struct ? 'struct' : 'union', name);
      case KIND.enum:
      case KIND.enum64:
        return this.#buildEnum(at, kind === KIND.enum ? 8 : 12, name);
      case KIND.typedef:
        return { kind: 'typedef', name, target };
      case KIND.float:
        return { kind: 'float', name, size: sizeOrType };
      case KIND.fwd:
        return { kind: 'opaque', name: `${info >>> 31 ? 'union' : 'struct'} ${name}` };
      case KIND.func:
      case KIND.funcProto:
        return { kind: 'function', name };
      default:
        return VOID;
    }
  }

  #buildStruct(at: number, kind: 'struct' | 'union', name: string): StructType {
    const { bytes } = this;
    const info = getU32(bytes, at + 4);
    const hasBitSizes = info >>> 31 === 1;
    const members: Member[] = [];
    for (let i = 0; i < (info & 0xffff); i++) {
      const member = at + TYPE + 12 * i;
      const type = getU32(bytes, member + 4);
      const offset = getU32(bytes, member + 8);
      members.push({
        name: this.#string(getU32(bytes, member)),
        type: () => this.type(type),
        bitOffset: hasBitSizes ? offset & 0xffffff : offset,
        bitSize: hasBitSizes ? offset >>> 24 : 0,
      });
    }
    return { kind, name, size: getU32(bytes, at + 8), members };
  }

  #buildEnum(at: number, entry: 8 | 12, name: string): EnumType {
    const { bytes } = this;
    const info = getU32(bytes, at + 4);
    const signed = info >>> 31 === 1;
    const values: { name: string; value: bigint }[] = [];
    for (let i = 0; i < (info & 0xffff); i++) {
      const value = at + TYPE + entry * i;
      const low = getU32(bytes, value + 4);
      const whole = entry === 12 ? (BigInt(getU32(bytes, value + 8)) << 32n) | BigInt(low) : BigInt(low);
      const wide =
        entry === 12 ? (signed ? BigInt.asIntN(64, whole) : whole) : BigInt(getS32(bytes, value + 4));
      values.push({
        name: this.#string(getU32(bytes, value)),
        value: signed || entry === 12 ? wide : whole,
      });
    }
    return { kind: 'enum', name, size: getU32(bytes, at + 8), signed, values };
  }
}

function invalid(what: string): KvmiError {
  return new KvmiError('E_BTF', `the kernel's type information (BTF): ${what}`, {
    hint: 'Give a vmlinux file with BTF, or an ISF file, of this kernel.',
  });
}

function kindAt(bytes: Uint8Array, at: number): number {
  return bytes[at + 7]! & 31;
}

/** Where each type starts. */
function indexTypes(bytes: Uint8Array, start: number, end: number) {
  let starts = new Uint32Array(Math.ceil((end - start) / TYPE));
  let count = 0;
  let cut: string | undefined;
  let at = start;
  while (at + TYPE <= end) {
    const layout = KINDS[kindAt(bytes, at)];
    if (layout === undefined) {
      cut = `type ${count + 1} is of a kind that is not known (${kindAt(bytes, at)})`;
      break;
    }
    const size = TYPE + layout[1] + layout[2] * getU16(bytes, at + 4);
    if (at + size > end) {
      cut = `type ${count + 1} is cut off`;
      break;
    }
    starts[count++] = at;
    at += size;
  }
  starts = starts.slice(0, count);
  return { starts, cut };
}
