import { descend, type Place, sizeOf, strip, type Type } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import type { Space } from './space.ts';
import { readValue, typeName, type Value } from './values.ts';
import type { Walk } from './walk.ts';

/** Where the names in an expression are looked up. They may be qualified: `MODULE:NAME`. */
export interface Names {
  /** The address of a symbol. */
  address(name: string): Walk<Gva | undefined>;
  /** A type, by its name with or without `struct`. */
  type(name: string): Walk<Type | undefined>;
  /** The type of a variable. */
  variable(name: string): Walk<Type | undefined>;
}

/** What an expression stands for. */
export interface TypedValue {
  readonly expression: string;
  readonly type: string;
  readonly address: Gva;
  readonly value: Value;
}

function invalid(expression: string, why: string): KvmiError {
  return new KvmiError('E_EXPRESSION', `${expression}: ${why}`, {
    hint: 'Write a symbol or (TYPE)ADDRESS, then .member, ->member or [index]: init_task.comm, (task_struct)0xffff….pid',
    data: { expression },
  });
}

/** Evaluates `init_task.comm` and the like. Throws a KvmiError with code E_EXPRESSION when it makes no sense. */
export function* evaluate(
  expression: string,
  names: Names,
  space: Space,
  note: (reason: string) => void,
): Walk<TypedValue> {
  const { address, type, rest } = yield* startOf(expression, names);
  let gva = address;
  let place: Place = { type, bitOffset: 0, bitSize: 0 };
  const step = /\s*(?:(->|\.)\s*([A-Za-z_]\w*)|\[\s*(\d{1,9})\s*\])/y;
  while (rest.slice(step.lastIndex).trim() !== '') {
    const from = step.lastIndex;
    const match = step.exec(rest);
    if (match === null) throw invalid(expression, `"${rest.slice(from)}" is neither a member nor an index`);
    const pointer = strip(place.type);
    if (pointer.kind === 'pointer') {
      gva = yield* space.u64(gva + BigInt(place.bitOffset >>> 3));
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
    address: at,
    value: yield* readValue(space, gva, place, note),
  };
}

const CAST = /^\s*\*?\(\s*((?:[\w-]+:)?\s*[\w\s]+?)\s*\*?\s*\)\s*((?:[A-Za-z_][\w-]*:)?\w+)/;
const VARIABLE = /^\s*((?:[A-Za-z_][\w-]*:)?[A-Za-z_][\w.]*?)(?=\s*(?:->|\.|\[|$))/;

function* startOf(expression: string, names: Names) {
  const cast = CAST.exec(expression);
  if (cast !== null) {
    const type = yield* names.type(cast[1]!);
    const address = yield* addressOf(cast[2]!, names);
    if (type === undefined) throw invalid(expression, `the kernel has no type ${cast[1]}`);
    if (address === undefined) throw invalid(expression, `${cast[2]} is neither an address nor a symbol`);
    return { type, address, rest: expression.slice(cast[0].length) };
  }
  const name = VARIABLE.exec(expression);
  const symbol = name && (yield* addressOf(name[1]!, names));
  if (name === null || symbol === null || symbol === undefined)
    throw invalid(expression, 'it starts with no symbol of the kernel or of a module');
  const type = yield* names.variable(name[1]!);
  if (type === undefined)
    throw invalid(expression, `the type of ${name[1]} is not known; write (TYPE)${name[1]}`);
  return { type, address: symbol, rest: expression.slice(name[0].length) };
}

/** Of a symbol, or as it is written. */
function* addressOf(text: string, names: Names): Walk<Gva | undefined> {
  if (/^(0x[0-9a-fA-F]{1,16}|\d{1,20})$/.test(text)) return BigInt.asUintN(64, BigInt(text));
  return yield* names.address(text);
}
