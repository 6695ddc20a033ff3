import { getU64 } from '../abi/bytes.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import { VARIABLES } from './layout.ts';
import type { Session } from './session.ts';
import { hex, textOf } from './text.ts';
import {
  descend,
  type EnumType,
  fieldAt,
  type Place,
  sizeOf,
  strip,
  type Type,
  type TypeSource,
} from './types.ts';
import type { Walk } from './walk.ts';

/** A C value: numbers (bigint beyond 2^53), text for char arrays, `0x…` for pointers, names for enumerators. */
export type Value =
  | number
  | bigint
  | boolean
  | string
  | readonly Value[]
  | { readonly [member: string]: Value };

/** What an expression stands for. */
export interface TypedValue {
  readonly expression: string;
  readonly type: string;
  readonly address: string;
  readonly value: Value;
}

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

function invalid(expression: string, why: string): KvmiError {
  return new KvmiError('E_EXPRESSION', `${expression}: ${why}`, {
    hint: 'Write a symbol or (TYPE)ADDRESS, then .member, ->member or [index]: init_task.comm, (task_struct)0xffff….pid',
    data: { expression },
  });
}

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

function findType(types: TypeSource, name: string): Type | undefined {
  return types.find(name.trim().replace(/^(struct|union|enum)\s+/, ''));
}

/** The members of a structure, or the values of an enumeration. */
export function* typeRows(session: Session, name: string): Walk<TypeRow[]> {
  const type = findType(yield* session.kernel.loadTypes(), name);
  if (type === undefined) throw new KvmiError('E_TYPE', `the kernel has no type ${name}`);
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

/** Evaluates `init_task.comm` and the like. Throws a KvmiError with code E_EXPRESSION when it makes no sense. */
export function* evaluate(session: Session, expression: string): Walk<TypedValue> {
  const { address, type, rest } = yield* startOf(session, expression);
  let gva = address;
  let place: Place = { type, bitOffset: 0, bitSize: 0 };
  const step = /\s*(?:(->|\.)\s*([A-Za-z_]\w*)|\[\s*(\d{1,9})\s*\])/y;
  while (rest.slice(step.lastIndex).trim() !== '') {
    const from = step.lastIndex;
    const match = step.exec(rest);
    if (match === null) throw invalid(expression, `"${rest.slice(from)}" is neither a member nor an index`);
    const pointer = strip(place.type);
    if (pointer.kind === 'pointer') {
      gva = yield* session.space.u64(gva + BigInt(place.bitOffset >>> 3));
      place = { type: pointer.target(), bitOffset: 0, bitSize: 0 };
      if (match[3] !== undefined) {
        gva += BigInt(Number(match[3]) * sizeOf(place.type));
        continue;
      }
    }
    const next = descend(place.type, [match[2] ?? Number(match[3])]);
    if (next === undefined) throw invalid(expression, `${typeName(place.type)} has no ${match[0].trim()}`);
    gva += BigInt(Math.floor(place.bitOffset / 8));
    place = next;
  }
  const at = gva + BigInt(Math.floor(place.bitOffset / 8));
  return {
    expression,
    type: typeName(place.type),
    address: hex(at),
    value: yield* readValue(session, gva, place),
  };
}

function* startOf(session: Session, expression: string) {
  const types = yield* session.kernel.loadTypes();
  const cast = /^\s*\*?\(\s*([\w\s]+?)\s*\*?\s*\)\s*(\w+)/.exec(expression);
  if (cast !== null) {
    const type = findType(types, cast[1]!);
    const address = addressOf(session, cast[2]!);
    if (type === undefined) throw invalid(expression, `the kernel has no type ${cast[1]}`);
    if (address === undefined) throw invalid(expression, `${cast[2]} is neither an address nor a symbol`);
    return { type, address, rest: expression.slice(cast[0].length) };
  }
  const name = /^\s*([A-Za-z_][\w.]*?)(?=\s*(?:->|\.|\[|$))/.exec(expression);
  const symbol = name && session.kernel.symbols.address(name[1]!);
  if (name === null || symbol == null) throw invalid(expression, 'it starts with no symbol of the kernel');
  const known = VARIABLES[name[1]!];
  const type = types.variable(name[1]!) ?? (known === undefined ? undefined : types.find(known));
  if (type === undefined)
    throw invalid(expression, `the type of ${name[1]} is not known; write (TYPE)${name[1]}`);
  return { type, address: symbol, rest: expression.slice(name[0].length) };
}

function addressOf(session: Session, text: string): Gva | undefined {
  return /^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(text) ? BigInt(text) : session.kernel.symbols.address(text);
}

/** Reads what is at `place` behind `gva`. */
export function* readValue(session: Session, gva: Gva, place: Place): Walk<Value> {
  const { offset, size } = fieldAt(place);
  const bytes = yield* session.space.read(gva + BigInt(offset), size);
  const budget = { parts: MAX_PARTS };
  const value = decode(bytes, { ...place, bitOffset: place.bitOffset - offset * 8 }, budget, 0);
  if (budget.parts <= 0) session.note(`a value was cut at ${MAX_PARTS} members`);
  return value;
}

/** `place.bitOffset` is from the start of `bytes`. */
function decode(bytes: Uint8Array, place: Place, budget: { parts: number }, depth: number): Value {
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
        const decoded = decode(bytes, inner, budget, depth + 1);
        if (member.name !== '') value[member.name] = decoded;
        else if (typeof decoded === 'object') Object.assign(value, decoded);
        if (budget.parts <= 0) break;
      }
      return value;
    }
    case 'array':
      return decodeArray(bytes, place, budget, depth);
    case 'pointer':
      return hex(getU64(padded(bytes, at), 0));
    case 'int':
    case 'enum':
      return decodeNumber(bytes, place);
    case 'float':
      return type.size === 8 ? new DataView(padded(bytes, at).buffer).getFloat64(0, true) : 0;
    default:
      return '';
  }
}

function decodeArray(bytes: Uint8Array, place: Place, budget: { parts: number }, depth: number): Value {
  const type = strip(place.type);
  if (type.kind !== 'array') return [];
  const element = type.element();
  const stripped = strip(element);
  const size = sizeOf(element);
  const at = Math.floor(place.bitOffset / 8);
  if (stripped.kind === 'int' && stripped.encoding === 'char')
    return textOf(bytes.subarray(at, Math.min(bytes.length, at + type.count)));
  const values: Value[] = [];
  for (let i = 0; i < Math.min(type.count, MAX_ELEMENTS) && budget.parts > 0; i++) {
    if (at + (i + 1) * size > bytes.length) break;
    values.push(
      decode(
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
