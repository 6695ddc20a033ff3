import { type Member, type Type, type TypeSource, VOID } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { IsfFile, IsfType } from './isf-format.ts';

type Entries<T> = Readonly<Record<string, T>>;

function own<T>(entries: Entries<T>, name: string): T | undefined {
  return Object.hasOwn(entries, name) ? entries[name] : undefined;
}

/** The types of an ISF file. */
export class IsfTypes implements TypeSource {
  readonly #file: IsfFile;
  readonly #built = new Map<string, Type>();

  /** `file`: the parsed JSON. Throws a KvmiError with code E_ISF when it is no ISF file. */
  constructor(file: unknown) {
    const parts = file as Partial<IsfFile> | null;
    for (const name of ['base_types', 'user_types', 'enums', 'symbols'] as const) {
      if (typeof parts?.[name] === 'object' && parts[name] !== null) continue;
      throw new KvmiError('E_ISF', `the ISF file has no ${name}`, {
        hint: 'Give a symbol file of Volatility 3.',
      });
    }
    this.#file = file as IsfFile;
  }

  find(name: string): Type | undefined {
    const known = this.#built.get(name);
    if (known !== undefined) return known;
    const type = this.#struct(name) ?? this.#enum(name) ?? this.#base(name);
    if (type !== undefined) this.#built.set(name, type);
    return type;
  }

  *names(): IterableIterator<string> {
    const { user_types, enums, base_types } = this.#file;
    for (const entries of [user_types, enums, base_types]) yield* Object.keys(entries);
  }

  variable(name: string): Type | undefined {
    const symbol = own(this.#file.symbols, name);
    return symbol?.type === undefined ? undefined : this.#type(symbol.type);
  }

  #struct(name: string): Type | undefined {
    const entry = own(this.#file.user_types, name);
    if (entry === undefined) return undefined;
    const members = Object.entries(entry.fields ?? {}).map(([field, { type, offset, anonymous }]): Member => {
      const isBits = type.kind === 'bitfield';
      const inner = isBits ? type.type : type;
      return {
        name: anonymous ? '' : field,
        type: () => this.#type(inner),
        bitOffset: Number(offset) * 8 + (isBits ? type.bit_position : 0),
        bitSize: isBits ? type.bit_length : 0,
      };
    });
    return { kind: entry.kind === 'union' ? 'union' : 'struct', name, size: Number(entry.size), members };
  }

  #enum(name: string): Type | undefined {
    const entry = own(this.#file.enums, name);
    if (entry === undefined) return undefined;
    const values = Object.entries(entry.constants ?? {}).map(([constant, value]) => ({
      name: constant,
      value: BigInt(Math.trunc(Number(value) || 0)),
    }));
    return {
      kind: 'enum',
      name,
      size: Number(entry.size),
      signed: values.some(({ value }) => value < 0n),
      values,
    };
  }

  #base(name: string): Type | undefined {
    const entry = own(this.#file.base_types, name);
    if (entry === undefined) return undefined;
    const { kind, signed } = entry;
    const size = Number(entry.size);
    if (kind === 'void') return VOID;
    if (kind === 'float') return { kind: 'float', name, size };
    return { kind: 'int', name, size, signed, encoding: kind === 'int' ? 'number' : kind };
  }

  #type(type: IsfType): Type {
    switch (type.kind) {
      case 'pointer':
        return { kind: 'pointer', size: 8, target: () => this.#type(type.subtype) };
      case 'array':
        return { kind: 'array', count: type.count, element: () => this.#type(type.subtype) };
      case 'function':
        return { kind: 'function', name: '' };
      case 'bitfield':
        return this.#type(type.type);
      default:
        return this.find(type.name) ?? { kind: 'opaque', name: type.name };
    }
  }
}
