/*
 * The Intermediate Symbol Format of Volatility 3 (volatility3/schemas/schema-6.2.0.json), as far as it concerns Linux.
 */

export const ISF_FORMAT = '6.2.0';

export type IsfType =
  | { readonly kind: 'base' | 'struct' | 'union' | 'enum' | 'class'; readonly name: string }
  | { readonly kind: 'pointer'; readonly subtype: IsfType }
  | { readonly kind: 'array'; readonly count: number; readonly subtype: IsfType }
  | {
      readonly kind: 'bitfield';
      readonly bit_position: number;
      readonly bit_length: number;
      readonly type: IsfType;
    }
  | { readonly kind: 'function' };

export interface IsfField {
  readonly offset: number;
  readonly type: IsfType;
  readonly anonymous?: boolean;
}

export interface IsfUserType {
  readonly kind: 'struct' | 'union' | 'class';
  readonly size: number;
  readonly fields: Readonly<Record<string, IsfField>>;
}

export interface IsfBaseType {
  readonly kind: 'void' | 'int' | 'float' | 'char' | 'bool';
  readonly size: number;
  readonly signed: boolean;
  readonly endian: 'little' | 'big';
}

export interface IsfEnum {
  readonly size: number;
  readonly base: string;
  readonly constants: Readonly<Record<string, number | bigint>>;
}

export interface IsfSymbol {
  /** Beyond what a JSON number keeps exactly in JavaScript: see {@link isfText}. */
  readonly address: bigint;
  readonly type?: IsfType;
  /** Base64. */
  readonly constant_data?: string;
}

export interface IsfFile {
  readonly metadata: {
    readonly format: string;
    readonly producer: { readonly name: string; readonly version: string };
    readonly linux: {
      readonly symbols: readonly {
        readonly kind: string;
        readonly name: string;
      }[];
      readonly types: readonly { readonly kind: string; readonly name: string }[];
    };
  };
  readonly base_types: Readonly<Record<string, IsfBaseType>>;
  readonly user_types: Readonly<Record<string, IsfUserType>>;
  readonly enums: Readonly<Record<string, IsfEnum>>;
  readonly symbols: Readonly<Record<string, IsfSymbol>>;
}

/** The file as JSON, with addresses as the exact integers that the format wants. */
export function isfText(file: IsfFile): string {
  const marked = JSON.stringify(file, (_, value) => (typeof value === 'bigint' ? `\u0001${value}` : value));
  return marked.replace(/"\\u0001(-?\d+)"/g, '$1');
}
