import * as bytes from './bytes.ts';

/** How one field of a structure is stored. `T` is what it decodes to; padding decodes to nothing. */
export interface FieldType<T> {
  /** For documentation: `u32`, `u8[16]`, `kvm_segment`. */
  readonly name: string;
  readonly size: number;
  readonly padding?: true;
  read(from: Uint8Array, at: number): T;
  write(into: Uint8Array, at: number, value: T): void;
}

export interface Padding extends FieldType<never> {
  readonly padding: true;
}

/** One row of a layout. */
export interface Field {
  readonly name: string;
  readonly type: FieldType<unknown>;
  readonly offset: number;
}

type Fields = Readonly<Record<string, FieldType<never> | FieldType<number> | FieldType<unknown>>>;

/** The object that a table of fields decodes to: one property a field, padding left out. */
export type Decoded<F extends Fields> = {
  [K in keyof F as F[K] extends Padding ? never : K]: F[K] extends FieldType<infer T> ? T : never;
};

/** A C structure as data: its fields with their offsets, and the codec that comes from them. */
export interface Struct<T> extends FieldType<T> {
  readonly fields: readonly Field[];
  /** The offset of a field, in bytes. */
  offsetOf(field: keyof T & string): number;
  /** Whether any padding byte is not zero. */
  hasPadding(from: Uint8Array, at: number): boolean;
}

export type Of<S> = S extends FieldType<infer T> ? T : never;

function scalar<T>(
  name: string,
  size: number,
  read: (from: Uint8Array, at: number) => T,
  write: (into: Uint8Array, at: number, value: T) => void,
): FieldType<T> {
  return { name, size, read, write };
}

export const u8 = scalar<number>(
  'u8',
  1,
  (from, at) => from[at]!,
  (into, at, value) => {
    into[at] = value;
  },
);
export const u16 = scalar('u16', 2, bytes.getU16, bytes.putU16);
export const u32 = scalar('u32', 4, bytes.getU32, bytes.putU32);
export const s32 = scalar('s32', 4, bytes.getS32, bytes.putU32);
export const u64 = scalar('u64', 8, bytes.getU64, bytes.putU64);
export const s64 = scalar('s64', 8, bytes.getS64, (into, at, value: bigint) =>
  bytes.putU64(into, at, BigInt.asUintN(64, value)),
);
/** A u64 that is an address, a frame number or a size: a number, exact below 2^53; all-ones is 2^64. */
export const address = scalar('u64', 8, bytes.getU64Number, bytes.putU64Number);

/** Bytes that must be zero. */
export function pad(size: number): Padding {
  return {
    name: `u8[${size}]`,
    size,
    padding: true,
    read: () => undefined as never,
    write: (into, at) => {
      into.fill(0, at, at + size);
    },
  };
}

/** A fixed number of bytes; decodes to a copy. Shorter values are zero-extended when encoded. */
export function byteArray(size: number): FieldType<Uint8Array> {
  return scalar(
    `u8[${size}]`,
    size,
    (from, at) => from.slice(at, at + size),
    (into, at, value) => {
      into.set(value.length > size ? value.subarray(0, size) : value, at);
      if (value.length < size) into.fill(0, at + value.length, at + size);
    },
  );
}

/** A fixed number of equal elements. */
export function array<T>(element: FieldType<T>, count: number): FieldType<T[]> {
  return scalar(
    `${element.name}[${count}]`,
    element.size * count,
    (from, at) => Array.from({ length: count }, (_, i) => element.read(from, at + i * element.size)),
    (into, at, value) => {
      for (let i = 0; i < count; i++) element.write(into, at + i * element.size, value[i]!);
    },
  );
}

/**
 * A structure from its fields in order. There is no implicit alignment: padding is a field, so that the
 * table reads like the specification. `size` is what the specification says, and is checked.
 */
export function struct<F extends Fields>(name: string, size: number, table: F): Struct<Decoded<F>> {
  let offset = 0;
  const fields = Object.entries(table).map(([fieldName, type]): Field => {
    const field = { name: fieldName, type: type as FieldType<unknown>, offset };
    offset += type.size;
    return field;
  });
  if (offset !== size) throw new Error(`${name}: fields add up to ${offset} bytes, not ${size}`);
  const values = fields.filter((field) => !field.type.padding);
  const paddings = fields.filter((field) => field.type.padding);
  const nested = values.filter((field) => 'hasPadding' in field.type);
  return {
    name,
    size,
    fields,
    offsetOf(fieldName) {
      const field = fields.find((candidate) => candidate.name === fieldName);
      if (!field) throw new Error(`${name} has no field ${fieldName}`);
      return field.offset;
    },
    hasPadding(from, at) {
      return (
        paddings.some((field) => !bytes.isZero(from, at + field.offset, field.type.size)) ||
        nested.some((field) => (field.type as Struct<unknown>).hasPadding(from, at + field.offset))
      );
    },
    read(from, at) {
      const value: Record<string, unknown> = {};
      for (const field of values) value[field.name] = field.type.read(from, at + field.offset);
      return value as Decoded<F>;
    },
    write(into, at, value) {
      for (const field of fields) {
        field.type.write(into, at + field.offset, (value as Record<string, unknown>)[field.name]);
      }
    },
  };
}

/** A structure without fields. */
export const empty: Struct<Record<never, never>> = struct('empty', 0, {});
