import { getS32, getU16, getU32, getU64 } from '../abi/bytes.ts';
import type { Field } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva, PhysicalMemory } from '../machine/index.ts';
import { Space } from '../reading/space.ts';
import { textOf } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import type { Kernel } from './kernel.ts';
import { type FieldName, noField, type StructLayout, type StructName } from './layout.ts';

/** A list of plain objects. `partial` when something is missing, and `reasons` says what. */
export interface Rows<T> {
  readonly rows: T[];
  readonly partial: boolean;
  readonly reasons: readonly string[];
}

export interface QueryOptions {
  /** Rows to answer at most; 262,144 unless told. */
  readonly limit?: number;
  /** When to stop and answer what there is, in milliseconds; 10,000 unless told. */
  readonly timeoutMs?: number;
}

const DEFAULT_LIMIT = 262_144;
const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_REASONS = 20;

/** A structure as it was when it was copied. */
export class Obj<S extends StructName> {
  readonly gva: Gva;
  readonly #layout: StructLayout<S>;
  /** From the first field that is used to the last. */
  readonly #bytes: Uint8Array;

  constructor(gva: Gva, layout: StructLayout<S>, bytes: Uint8Array) {
    this.gva = gva;
    this.#layout = layout;
    this.#bytes = bytes;
  }

  has(name: FieldName<S>): boolean {
    return this.#layout.fields[name] !== undefined;
  }

  /** An integer: exact below 2^53. */
  number(name: FieldName<S>): number {
    const field = this.#field(name);
    const at = field.offset - this.#layout.span.start;
    if (field.bitSize !== undefined) return Number(bitsOf(this.#bytes, at, field));
    switch (field.size) {
      case 1:
        return field.signed ? (this.#bytes[at]! << 24) >> 24 : this.#bytes[at]!;
      case 2:
        return field.signed ? (getU16(this.#bytes, at) << 16) >> 16 : getU16(this.#bytes, at);
      case 4:
        return field.signed ? getS32(this.#bytes, at) : getU32(this.#bytes, at);
      default:
        // Damaged types have integers of any size.
        return field.size < 8
          ? Number(bitsOf(this.#bytes, at, { ...field, bitSize: 8 * field.size }))
          : Number(this.big(name));
    }
  }

  /** An integer of any size, or the first eight bytes of something larger. */
  big(name: FieldName<S>): bigint {
    const field = this.#field(name);
    const at = field.offset - this.#layout.span.start;
    if (field.size < 8) return BigInt(this.number(name));
    const value = getU64(this.#bytes, at);
    return field.signed ? BigInt.asIntN(64, value) : value;
  }

  pointer(name: FieldName<S>): Gva {
    const field = this.#field(name);
    return field.size < 8 ? 0n : getU64(this.#bytes, field.offset - this.#layout.span.start);
  }

  text(name: FieldName<S>): string {
    return textOf(this.bytes(name));
  }

  bytes(name: FieldName<S>): Uint8Array {
    const { offset, size } = this.#field(name);
    const at = offset - this.#layout.span.start;
    return this.#bytes.subarray(at, at + size);
  }

  /** Where the field itself is. */
  address(name: FieldName<S>): Gva {
    return this.gva + BigInt(this.#field(name).offset);
  }

  #field(name: FieldName<S>): Field {
    const field = this.#layout.fields[name];
    if (field === undefined) throw noField(this.#layout.name, name);
    return field;
  }
}

function bitsOf(bytes: Uint8Array, at: number, { size, bitOffset = 0, bitSize = 0, signed }: Field): bigint {
  let unit = 0n;
  for (let i = size - 1; i >= 0; i--) unit = (unit << 8n) | BigInt(bytes[at + i]!);
  const value = BigInt.asUintN(bitSize, unit >> BigInt(bitOffset));
  return signed ? BigInt.asIntN(bitSize, value) : value;
}

/** One question to a kernel: its memory as far as it was read, and what went wrong on the way. */
export class Session {
  readonly kernel: Kernel;
  readonly space: Space;
  readonly limit: number;
  readonly #deadline: number;
  readonly #reasons = new Set<string>();
  readonly #spaces = new Map<Gva, Space | undefined>();

  constructor(kernel: Kernel, options: QueryOptions = {}) {
    this.kernel = kernel;
    this.space = new Space(kernel.memory, kernel.paging);
    this.limit = options.limit ?? DEFAULT_LIMIT;
    this.#deadline = performance.now() + (options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  }

  get memory(): PhysicalMemory {
    return this.kernel.memory;
  }

  get reasons(): readonly string[] {
    return [...this.#reasons];
  }

  /** Notes that something is missing. */
  note(reason: string): void {
    if (this.#reasons.size < MAX_REASONS) this.#reasons.add(reason);
    else if (this.#reasons.size === MAX_REASONS) this.#reasons.add('and more');
  }

  /** Whether there is time left; notes it when there is not. */
  hasTime(): boolean {
    if (performance.now() < this.#deadline) return true;
    this.note('stopped when the time was up');
    return false;
  }

  /** The items, as long as there is time. */
  *timely<T>(items: Iterable<T>): IterableIterator<T> {
    for (const item of items) {
      if (!this.hasTime()) return;
      yield item;
    }
  }

  /** Whether one more row fits, when there are `count`; notes it when it does not. */
  hasRoom(count: number, what: string): boolean {
    if (count < this.limit) return true;
    this.note(`more than ${this.limit} ${what}`);
    return false;
  }

  /** The same question anew: nothing that was read is known any more, and what is left of the time stays. */
  again(): Session {
    return new Session(this.kernel, { limit: this.limit, timeoutMs: this.#deadline - performance.now() });
  }

  /** The walk's value; when it fails because of what is in guest memory, a note and `otherwise`. */
  *attempt<T>(what: string, walk: Walk<T>, otherwise: T): Walk<T> {
    try {
      return yield* walk;
    } catch (error) {
      if (!(error instanceof KvmiError)) throw error;
      this.note(`${what}: ${error.message}`);
      return otherwise;
    }
  }

  /** Copies the fields of a structure. */
  *object<S extends StructName>(name: S, gva: Gva): Walk<Obj<S>> {
    const layout = this.kernel.layouts.get(name);
    const { start, end } = layout.span;
    if (end === 0) throw noStruct(layout.type);
    return new Obj(gva, layout, yield* this.space.read(gva + BigInt(start), end - start));
  }

  /** The structure around a member of it: container_of(). */
  *around<S extends StructName>(name: S, field: FieldName<S>, gva: Gva): Walk<Obj<S>> {
    return yield* this.object(name, gva - BigInt(this.kernel.layouts.field(name, field).offset));
  }

  /** The address space of a process, by its mm_struct; undefined when its top table is not to be found. */
  *userSpace(mm: Obj<'mm'>): Walk<Space | undefined> {
    if (this.#spaces.has(mm.gva)) return this.#spaces.get(mm.gva);
    const root = yield* this.kernel.translate(mm.pointer('pgd'));
    const space =
      root === undefined
        ? undefined
        : new Space(this.memory, { ...this.kernel.paging, root: root - (root % 4096) });
    this.#spaces.set(mm.gva, space);
    return space;
  }

  /** The address of a kernel symbol; throws when there is none. */
  symbol(name: string): Gva {
    return this.kernel.symbols.require(name);
  }

  rows<T>(rows: T[]): Rows<T> {
    return { rows, partial: this.#reasons.size > 0, reasons: this.reasons };
  }
}

function noStruct(type: string): KvmiError {
  return new KvmiError('E_FIELD', `this kernel has no type ${type}`, {
    hint: 'The kernel is built without that part, or is of a version that kvmi does not know yet.',
    data: { type },
  });
}
