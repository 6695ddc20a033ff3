import type { Awaitable } from '../awaitable.ts';
import { then } from '../awaitable.ts';
import { type StructType, strip, type Type, type TypeSource } from '../btf/types.ts';
import { run } from '../reading/walk.ts';
import {
  ISF_FORMAT,
  type IsfBaseType,
  type IsfEnum,
  type IsfField,
  type IsfFile,
  type IsfSymbol,
  type IsfType,
  type IsfUserType,
} from './isf-format.ts';
import { VARIABLES } from './layout.ts';
import type { Linux } from './linux.ts';

/** Where `_text` is linked without KASLR, unless the kernel was configured in an unusual way. */
const LINKED_TEXT = 0xffff_ffff_8100_0000n;
const IMAGE_MAP = 0xffff_ffff_8000_0000n;

/**
 * A symbol file for Volatility 3, made from the guest's own symbols and types. Save what `isfText` makes of it under
 * `volatility3/symbols/linux/`; it fits dumps of every machine that runs the same kernel.
 */
export function isf(linux: Linux): Awaitable<IsfFile> {
  return then(run(linux.kernel.loadTypes()), (types) => new IsfWriter(linux, types).file());
}

/** By size in bytes: without a sign, with one. */
const ENUM_BASES: Readonly<Record<number, readonly [unsigned: string, signed: string]>> = {
  1: ['unsigned char', 'signed char'],
  2: ['short unsigned int', 'short int'],
  4: ['unsigned int', 'int'],
  8: ['long unsigned int', 'long int'],
};

function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** Empty also of what objects inherit: a kernel may have a `constructor`. */
function byName<T>(): Record<string, T> {
  return Object.create(null) as Record<string, T>;
}

class IsfWriter {
  readonly #linux: Linux;
  readonly #types: TypeSource;
  readonly #baseTypes: Record<string, IsfBaseType> = byName();
  readonly #userTypes: Record<string, IsfUserType> = byName();
  readonly #enums: Record<string, IsfEnum> = byName();
  /** Names given to types that have none. */
  readonly #unnamed = new Map<Type, string>();
  /** Structures that the kernel only points to. */
  readonly #opaque = new Set<string>();

  constructor(linux: Linux, types: TypeSource) {
    this.#linux = linux;
    this.#types = types;
  }

  file(): IsfFile {
    const little = { endian: 'little', signed: false } as const;
    this.#baseTypes.void = { ...little, kind: 'void', size: 0 };
    this.#baseTypes.pointer = { ...little, kind: 'int', size: 8 } as IsfBaseType;
    for (const name of this.#types.names()) this.#reference(this.#types.find(name)!);
    const symbols = this.#symbols();
    for (const name of this.#opaque) this.#userTypes[name] ??= { kind: 'struct', size: 0, fields: {} };
    const { buildId, release } = this.#linux.kernel;
    // The format has no place for a build id.
    const source = {
      kind: 'symtab',
      name: `kallsyms of ${release}${buildId === undefined ? '' : `, build id ${buildId}`}`,
    };
    return {
      metadata: {
        format: ISF_FORMAT,
        producer: { name: 'kvmi', version: '1' },
        linux: { symbols: [source], types: [{ kind: 'dwarf', name: 'BTF' }] },
      },
      base_types: this.#baseTypes,
      user_types: this.#userTypes,
      enums: this.#enums,
      symbols,
    };
  }

  /** A reference to a type; the type itself is written when it is met for the first time. */
  #reference(type: Type, depth = 0): IsfType {
    const stripped = strip(type);
    switch (stripped.kind) {
      case 'pointer': {
        // Cycles go through structures, which are written only once; a pointer to a pointer without end is cut.
        const subtype: IsfType =
          depth > 16 ? { kind: 'base', name: 'void' } : this.#reference(stripped.target(), depth + 1);
        return { kind: 'pointer', subtype };
      }
      case 'array':
        return {
          kind: 'array',
          count: stripped.count,
          subtype:
            depth > 16 ? { kind: 'base', name: 'void' } : this.#reference(stripped.element(), depth + 1),
        };
      case 'struct':
      case 'union':
        return { kind: stripped.kind, name: this.#writeStruct(stripped) };
      case 'enum': {
        const name = this.#nameOf(stripped);
        this.#enums[name] ??= {
          size: stripped.size,
          base: this.#enumBase(stripped.size, stripped.signed),
          constants: Object.fromEntries(
            stripped.values.map(({ name: constant, value }) => [constant, exact(value)]),
          ),
        };
        return { kind: 'enum', name };
      }
      case 'int':
      case 'float':
        this.#baseTypes[stripped.name] ??= {
          kind:
            stripped.kind === 'float' ? 'float' : stripped.encoding === 'number' ? 'int' : stripped.encoding,
          size: stripped.size,
          signed: stripped.kind === 'int' && stripped.signed,
          endian: 'little',
        };
        return { kind: 'base', name: stripped.name };
      case 'function':
        return { kind: 'function' };
      case 'opaque': {
        const name = stripped.name.replace(/^(struct|union) /, '');
        this.#opaque.add(name);
        return { kind: 'struct', name };
      }
      default:
        return { kind: 'base', name: 'void' };
    }
  }

  /** The reader takes the size of an enumeration from its base. */
  #enumBase(size: number, signed: boolean): string {
    const names = ENUM_BASES[size] ?? ENUM_BASES[4]!;
    const name = names[signed ? 1 : 0];
    this.#baseTypes[name] ??= { kind: 'int', size, signed, endian: 'little' };
    return name;
  }

  #nameOf(type: Type & { readonly name: string }): string {
    if (type.name !== '') return type.name;
    const known = this.#unnamed.get(type);
    if (known !== undefined) return known;
    const name = `unnamed_${this.#unnamed.size.toString(16)}`;
    this.#unnamed.set(type, name);
    return name;
  }

  #writeStruct(type: StructType): string {
    const name = this.#nameOf(type);
    if (name in this.#userTypes) return name;
    const fields: Record<string, IsfField> = byName();
    this.#userTypes[name] = { kind: type.kind, size: type.size, fields };
    type.members.forEach((member, i) => {
      const inner = this.#reference(member.type());
      const isBits = member.bitSize > 0;
      fields[member.name || `unnamed_field_${i}`] = {
        offset: Math.floor(member.bitOffset / 8),
        type: isBits
          ? { kind: 'bitfield', bit_position: member.bitOffset % 8, bit_length: member.bitSize, type: inner }
          : inner,
        ...(member.name === '' ? { anonymous: true } : {}),
      };
    });
    return name;
  }

  /** Addresses are those of the kernel as it was linked: the reader finds out how far KASLR moved it. */
  #symbols(): Record<string, IsfSymbol> {
    const { kernel, symbols: table } = this.#linux;
    const text = table.address('_text') ?? kernel.imageStart;
    const moved = text - LINKED_TEXT;
    const symbols: Record<string, IsfSymbol> = byName();
    for (const { name, address } of table) {
      if (name in symbols) continue;
      const linked = address >= IMAGE_MAP ? address - moved : address;
      const known = Object.hasOwn(VARIABLES, name) ? VARIABLES[name] : undefined;
      const type = this.#types.variable(name) ?? (known === undefined ? undefined : this.#types.find(known));
      symbols[name] = {
        address: linked,
        ...(type === undefined ? {} : { type: this.#reference(type) }),
      };
    }
    const banner = Buffer.from(`${kernel.banner}\n\0`);
    const bannerType = this.#bannerType(banner.length);
    if (symbols.linux_banner !== undefined)
      symbols.linux_banner = {
        ...symbols.linux_banner,
        type: bannerType,
        constant_data: banner.toString('base64'),
      };
    return symbols;
  }

  #bannerType(count: number): IsfType {
    this.#baseTypes.char ??= { kind: 'char', size: 1, signed: true, endian: 'little' };
    return { kind: 'array', count, subtype: { kind: 'base', name: 'char' } };
  }
}
