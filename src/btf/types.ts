/*
 * C types, whatever they were read from. Types refer to each other by functions, because they are cyclic and because
 * a kernel has a hundred thousand of them, of which few are ever looked at.
 */

export interface IntType {
  readonly kind: 'int';
  readonly name: string;
  readonly size: number;
  readonly signed: boolean;
  readonly encoding: 'number' | 'bool' | 'char';
}

export interface FloatType {
  readonly kind: 'float';
  readonly name: string;
  readonly size: number;
}

export interface PointerType {
  readonly kind: 'pointer';
  readonly size: number;
  readonly target: () => Type;
}

export interface ArrayType {
  readonly kind: 'array';
  readonly count: number;
  readonly element: () => Type;
}

export interface Member {
  /** Empty for an anonymous struct or union: its members belong to the one around it. */
  readonly name: string;
  readonly type: () => Type;
  /** From the start of the structure, in bits. */
  readonly bitOffset: number;
  /** 0 unless it is a bit field. */
  readonly bitSize: number;
}

export interface StructType {
  readonly kind: 'struct' | 'union';
  readonly name: string;
  readonly size: number;
  readonly members: readonly Member[];
}

export interface EnumType {
  readonly kind: 'enum';
  readonly name: string;
  readonly size: number;
  readonly signed: boolean;
  readonly values: readonly { readonly name: string; readonly value: bigint }[];
}

export interface TypedefType {
  readonly kind: 'typedef';
  readonly name: string;
  readonly target: () => Type;
}

export interface VoidType {
  /** `opaque`: a structure that is declared only. */
  readonly kind: 'void' | 'function' | 'opaque';
  readonly name: string;
}

export type Type =
  | IntType
  | FloatType
  | PointerType
  | ArrayType
  | StructType
  | EnumType
  | TypedefType
  | VoidType;

/** Where types come from: a kernel's BTF, a vmlinux file, an ISF file. */
export interface TypeSource {
  /** `struct NAME`, `union NAME`, `enum NAME`, or a typedef or base type of that name, in this order. */
  find(name: string): Type | undefined;
  /** Names of structures, unions, enums, typedefs and base types. */
  names(): IterableIterator<string>;
  /** The type of a variable, where the source has it. */
  variable(name: string): Type | undefined;
}

export const VOID: VoidType = { kind: 'void', name: 'void' };

/** No type is nested deeper than this by value, except in damaged data. */
const MAX_DEPTH = 32;

/** The type behind typedefs. */
export function strip(type: Type): Exclude<Type, TypedefType> {
  let at = type;
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    if (at.kind !== 'typedef') return at;
    at = at.target();
  }
  return VOID;
}

/** In bytes; 0 for what has no size. */
export function sizeOf(type: Type, depth = 0): number {
  const stripped = strip(type);
  switch (stripped.kind) {
    case 'array':
      return depth > MAX_DEPTH
        ? 0
        : Math.min(stripped.count * sizeOf(stripped.element(), depth + 1), 2 ** 40);
    case 'void':
    case 'function':
    case 'opaque':
      return 0;
    default:
      return stripped.size;
  }
}

/** A member with its place in the outermost structure. */
export interface Field {
  /** In bytes. Of a bit field: of the unit that holds it. */
  readonly offset: number;
  readonly size: number;
  readonly signed: boolean;
  /** Bit fields only: the lowest bit in the unit, and the number of bits. */
  readonly bitOffset?: number;
  readonly bitSize?: number;
}

/** A member found by name, also in anonymous members. `bitOffset` is from the start of `type`. */
export function findMember(type: StructType, name: string, depth = 0): Member | undefined {
  for (const member of type.members) if (member.name === name) return member;
  if (depth > MAX_DEPTH) return undefined;
  for (const member of type.members) {
    if (member.name !== '') continue;
    const inner = strip(member.type());
    if (inner.kind !== 'struct' && inner.kind !== 'union') continue;
    const found = findMember(inner, name, depth + 1);
    if (found) return { ...found, bitOffset: found.bitOffset + member.bitOffset };
  }
  return undefined;
}

/** What follows a name in a C expression: `.name` and `->name` without the sign, or an index. */
export type Step = string | number;

/** `a.b[2].c` as steps; undefined when it is not of that form. */
export function parsePath(path: string): Step[] | undefined {
  const steps: Step[] = [];
  const part = /(?:^|\.)([A-Za-z_]\w*)|\[(\d{1,9})\]/y;
  while (part.lastIndex < path.length) {
    const match = part.exec(path);
    if (match === null) return undefined;
    steps.push(match[1] ?? Number(match[2]));
  }
  return steps.length > 0 ? steps : undefined;
}

/** A place in a type. */
export interface Place {
  readonly type: Type;
  readonly bitOffset: number;
  readonly bitSize: number;
}

/** Goes from a structure to a member of it, through nested structures and arrays but not through pointers. */
export function descend(type: Type, steps: readonly Step[]): Place | undefined {
  let place: Place = { type, bitOffset: 0, bitSize: 0 };
  for (const step of steps) {
    const outer = strip(place.type);
    if (typeof step === 'number') {
      if (outer.kind !== 'array') return undefined;
      const element = outer.element();
      place = {
        type: element,
        bitOffset: place.bitOffset + step * sizeOf(element) * 8,
        bitSize: 0,
      };
    } else {
      if (outer.kind !== 'struct' && outer.kind !== 'union') return undefined;
      const member = findMember(outer, step);
      if (member === undefined) return undefined;
      place = {
        type: member.type(),
        bitOffset: place.bitOffset + member.bitOffset,
        bitSize: member.bitSize,
      };
    }
  }
  return place;
}

/** The field at the end of `path` (`a.b[2].c`) in `type`. */
export function fieldOf(type: Type, path: string): Field | undefined {
  const steps = parsePath(path);
  const place = steps && descend(type, steps);
  return place && fieldAt(place);
}

export function fieldAt({ type, bitOffset, bitSize }: Place): Field {
  const stripped = strip(type);
  const size = sizeOf(stripped);
  const signed = (stripped.kind === 'int' || stripped.kind === 'enum') && stripped.signed;
  if (bitSize === 0) return { offset: Math.floor(bitOffset / 8), size, signed };
  // The unit is made as large as it must be when the bits cross one of the declared size.
  const unit = Math.max(1, size) * 8;
  let start = bitOffset - (bitOffset % unit);
  let bits = unit;
  if (bitOffset + bitSize > start + unit) {
    start = bitOffset - (bitOffset % 8);
    bits = Math.ceil((bitOffset + bitSize - start) / 8) * 8;
  }
  return { offset: start / 8, size: bits / 8, signed, bitOffset: bitOffset - start, bitSize };
}
