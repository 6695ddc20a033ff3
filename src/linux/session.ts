import { getS32, getU16, getU32, getU64 } from '../abi/bytes.ts';
import type { Field } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva, PhysicalMemory } from '../machine/index.ts';
import { type QueryOptions, Question } from '../reading/question.ts';
import { Space } from '../reading/space.ts';
import { textOf } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import type { Kernel } from './kernel.ts';
import { type FieldName, noField, type StructLayout, type StructName } from './layout.ts';

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

/** One question to a kernel, with its memory as far as it was read. */
export class Session extends Question {
  readonly kernel: Kernel;
  readonly space: Space;
  readonly #spaces = new Map<Gva, Space | undefined>();

  constructor(kernel: Kernel, options: QueryOptions = {}) {
    super(options);
    this.kernel = kernel;
    this.space = new Space(kernel.memory, kernel.paging);
  }

  get memory(): PhysicalMemory {
    return this.kernel.memory;
  }

  /** The same question anew: nothing that was read is known any more, and what is left of the time stays. */
  again(): Session {
    return new Session(this.kernel, this.rest);
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
}

function noStruct(type: string): KvmiError {
  return new KvmiError('E_FIELD', `this kernel has no type ${type}`, {
    hint: 'The kernel is built without that part, or is of a version that kvmi does not know yet.',
    data: { type },
  });
}
