import { descend, type Place, sizeOf, strip, type Type } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import { hex } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import { VARIABLES } from './layout.ts';
import { moduleSymbols } from './module-symbols.ts';
import { moduleTypes, typeNamed } from './module-types.ts';
import type { Session } from './session.ts';
import { readValue, typeName, type Value } from './values.ts';

/** What an expression stands for. */
export interface TypedValue {
  readonly expression: string;
  readonly type: string;
  readonly address: string;
  readonly value: Value;
}

function invalid(expression: string, why: string): KvmiError {
  return new KvmiError('E_EXPRESSION', `${expression}: ${why}`, {
    hint: 'Write a symbol or (TYPE)ADDRESS, then .member, ->member or [index]: init_task.comm, (task_struct)0xffff….pid',
    data: { expression },
  });
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

const CAST = /^\s*\*?\(\s*((?:[\w-]+:)?\s*[\w\s]+?)\s*\*?\s*\)\s*((?:[A-Za-z_][\w-]*:)?\w+)/;
const VARIABLE = /^\s*((?:[A-Za-z_][\w-]*:)?[A-Za-z_][\w.]*?)(?=\s*(?:->|\.|\[|$))/;

function* startOf(session: Session, expression: string) {
  const cast = CAST.exec(expression);
  if (cast !== null) {
    const type = yield* typeNamed(session, cast[1]!);
    const address = yield* addressOf(session, cast[2]!);
    if (type === undefined) throw invalid(expression, `the kernel has no type ${cast[1]}`);
    if (address === undefined) throw invalid(expression, `${cast[2]} is neither an address nor a symbol`);
    return { type, address, rest: expression.slice(cast[0].length) };
  }
  const name = VARIABLE.exec(expression);
  const symbol = name && (yield* addressOf(session, name[1]!));
  if (name === null || symbol === null || symbol === undefined)
    throw invalid(expression, 'it starts with no symbol of the kernel or of a module');
  const type = yield* typeOfVariable(session, name[1]!);
  if (type === undefined)
    throw invalid(expression, `the type of ${name[1]} is not known; write (TYPE)${name[1]}`);
  return { type, address: symbol, rest: expression.slice(name[0].length) };
}

function* typeOfVariable(session: Session, qualified: string): Walk<Type | undefined> {
  const [module, name] = splitQualified(qualified);
  if (module === undefined) {
    const types = yield* session.kernel.loadTypes();
    const known = VARIABLES[name];
    const type = types.variable(name) ?? (known === undefined ? undefined : types.find(known));
    if (type !== undefined) return type;
  }
  for (const each of yield* moduleTypes(session)) {
    const type = module === undefined || each.module === module ? each.types.variable(name) : undefined;
    if (type !== undefined) return type;
  }
  return undefined;
}

function splitQualified(text: string): [module: string | undefined, name: string] {
  const colon = text.indexOf(':');
  return colon < 0 ? [undefined, text] : [text.slice(0, colon), text.slice(colon + 1)];
}

/** Of a symbol of the kernel, or else of a module (`MODULE:NAME`), or as it is written. */
function* addressOf(session: Session, text: string): Walk<Gva | undefined> {
  const [module, name] = splitQualified(text);
  if (module === undefined) {
    if (/^(0x[0-9a-fA-F]{1,16}|\d{1,20})$/.test(text)) return BigInt.asUintN(64, BigInt(text));
    const address = session.kernel.symbols.address(text);
    if (address !== undefined) return address;
  }
  return (yield* moduleSymbols(session, module)).find((symbol) => symbol.name === name)?.address;
}
