import { getU64 } from '../abi/bytes.ts';
import { type EnumType, fieldAt, type Place, sizeOf, strip, type Type } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import type { Space } from './space.ts';
import { textOf } from './text.ts';
import type { Walk } from './walk.ts';

/** A pointer of the guest. */
export class Pointer {
  readonly address: Gva;
  /** What a pointer to characters points to, up to {@link MAX_TEXT} bytes of it; undefined for any other. */
  readonly text: string | undefined;

  constructor(address: Gva, text?: string) {
    this.address = address;
    this.text = text;
  }
}

/** A C value: numbers (bigint beyond 2^53), text for char arrays, names for enumerators. */
export type Value =
  | number
  | bigint
  | boolean
  | string
  | Pointer
  | readonly Value[]
  | { readonly [member: string]: Value };

/** A member of a structure, as `kvmi type` prints it. */
export interface TypeRow {
  /** In bytes, from the start of the structure. */
  readonly offset: number;
  readonly size: number;
  readonly type: string;
  readonly name: string;
  /** `bit:count` within the unit at `offset`; empty for what is no bit field. */
  readonly bits: string;
}

const MAX_DEPTH = 8;
const MAX_ELEMENTS = 256;
/** Members and elements of one value. */
const MAX_PARTS = 20_000;
/** Texts behind pointers of one value, and bytes of each. */
const MAX_TEXTS = 256;
const MAX_TEXT = 256;

/** A C declaration of the type, without a name. */
export function typeName(type: Type, depth = 0): string {
  if (depth > MAX_DEPTH) return '…';
  switch (type.kind) {
    case 'pointer': {
      const target = type.target();
      return target.kind === 'function' ? 'void (*)()' : `${typeName(target, depth + 1)} *`;
    }
    case 'array':
      return `${typeName(type.element(), depth + 1)}[${type.count}]`;
    case 'struct':
    case 'union':
    case 'enum':
      return `${type.kind} ${type.name || '{…}'}`;
    default:
      return type.name || type.kind;
  }
}

/** The members of a structure, or the values of an enumeration. `name` is what the type is called. */
export function typeRows(type: Type, name: string): TypeRow[] {
  const stripped = strip(type);
  if (stripped.kind === 'enum') return enumRows(stripped);
  if (stripped.kind !== 'struct' && stripped.kind !== 'union')
    return [{ offset: 0, size: sizeOf(stripped), type: typeName(stripped), name, bits: '' }];
  return stripped.members.map((member) => {
    const inner = member.type();
    const field = fieldAt({ type: inner, bitOffset: member.bitOffset, bitSize: member.bitSize });
    const { offset, size, bitOffset, bitSize } = field;
    const bits = bitSize === undefined ? '' : `${bitOffset}:${bitSize}`;
    return { offset, size, type: typeName(inner), name: member.name, bits };
  });
}

function enumRows({ values, size }: EnumType): TypeRow[] {
  return values.map(({ name, value }) => ({ offset: 0, size, type: String(value), name, bits: '' }));
}

/** Reads what is at `place` behind `gva`. */
export function* readValue(
  space: Space,
  gva: Gva,
  place: Place,
  note: (reason: string) => void,
): Walk<Value> {
  const { offset, size } = fieldAt(place);
  const bytes = yield* space.read(gva + BigInt(offset), size);
  const budget = { space, parts: MAX_PARTS, texts: MAX_TEXTS };
  const value = yield* decode(bytes, { ...place, bitOffset: place.bitOffset - offset * 8 }, budget, 0);
  if (budget.parts <= 0) note(`a value was cut at ${MAX_PARTS} members`);
  return value;
}

/** What one value may still take. */
interface Budget {
  readonly space: Space;
  parts: number;
  texts: number;
}

/** `place.bitOffset` is from the start of `bytes`. */
function* decode(bytes: Uint8Array, place: Place, budget: Budget, depth: number): Walk<Value> {
  if (--budget.parts <= 0 || depth > MAX_DEPTH) return '…';
  const type = strip(place.type);
  const at = Math.floor(place.bitOffset / 8);
  switch (type.kind) {
    case 'struct':
    case 'union': {
      const value: Record<string, Value> = {};
      for (const member of type.members) {
        const inner = {
          type: member.type(),
          bitOffset: place.bitOffset + member.bitOffset,
          bitSize: member.bitSize,
        };
        const decoded = yield* decode(bytes, inner, budget, depth + 1);
        if (member.name !== '') value[member.name] = decoded;
        else if (typeof decoded === 'object' && !(decoded instanceof Pointer)) Object.assign(value, decoded);
        if (budget.parts <= 0) break;
      }
      return value;
    }
    case 'array':
      return yield* decodeArray(bytes, place, budget, depth);
    case 'pointer':
      return yield* pointerTo(type.target(), getU64(padded(bytes, at), 0), budget);
    case 'int':
    case 'enum':
      return decodeNumber(bytes, place);
    case 'float':
      return type.size === 8 ? new DataView(padded(bytes, at).buffer).getFloat64(0, true) : 0;
    default:
      return '';
  }
}

function isCharacter(type: Type): boolean {
  const stripped = strip(type);
  return stripped.kind === 'int' && stripped.encoding === 'char';
}

function* pointerTo(target: Type, address: Gva, budget: Budget): Walk<Pointer> {
  if (address === 0n || budget.texts <= 0 || !isCharacter(target)) return new Pointer(address);
  budget.texts--;
  try {
    return new Pointer(address, yield* budget.space.string(address, MAX_TEXT));
  } catch (error) {
    // Of a process, swapped out, or damaged: the pointer is the value all the same.
    if (error instanceof KvmiError) return new Pointer(address);
    throw error;
  }
}

function* decodeArray(bytes: Uint8Array, place: Place, budget: Budget, depth: number): Walk<Value> {
  const type = strip(place.type);
  if (type.kind !== 'array') return [];
  const element = type.element();
  const size = sizeOf(element);
  const at = Math.floor(place.bitOffset / 8);
  if (isCharacter(element)) return textOf(bytes.subarray(at, Math.min(bytes.length, at + type.count)));
  const values: Value[] = [];
  for (let i = 0; i < Math.min(type.count, MAX_ELEMENTS) && budget.parts > 0; i++) {
    if (at + (i + 1) * size > bytes.length) break;
    values.push(
      yield* decode(
        bytes,
        { type: element, bitOffset: place.bitOffset + i * size * 8, bitSize: 0 },
        budget,
        depth + 1,
      ),
    );
  }
  return values;
}

function padded(bytes: Uint8Array, at: number): Uint8Array<ArrayBuffer> {
  const part = new Uint8Array(8);
  part.set(bytes.subarray(at, at + 8));
  return part;
}

function decodeNumber(bytes: Uint8Array, place: Place): Value {
  const type = strip(place.type);
  const field = fieldAt(place);
  let value = BigInt.asUintN(8 * Math.min(8, field.size || 1), getU64(padded(bytes, field.offset), 0));
  if (field.bitSize !== undefined)
    value = BigInt.asUintN(field.bitSize, value >> BigInt(field.bitOffset ?? 0));
  if (field.signed) value = BigInt.asIntN(field.bitSize ?? 8 * Math.min(8, field.size), value);
  if (type.kind === 'enum') {
    const named = type.values.find((candidate) => candidate.value === value);
    if (named !== undefined) return named.name;
  }
  if (type.kind === 'int' && type.encoding === 'bool') return value !== 0n;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
