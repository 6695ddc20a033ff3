import type { FieldType, Struct } from '../abi/struct.ts';

/** What a message carries: a fixed part and, in some, a part whose length the fixed part or the message decides. */
export interface Body<T> {
  readonly fixed: Struct<unknown>;
  /** What follows the fixed part, for documentation. */
  readonly tail: string | undefined;
  /** Bytes of `value` on the wire. */
  sizeOf(value: T): number;
  write(into: Uint8Array, at: number, value: T): void;
  /**
   * Decodes `length` bytes at `at`, which hold at least the fixed part. Undefined when the variable part
   * is shorter than the fixed part says.
   */
  read(from: Uint8Array, at: number, length: number): T | undefined;
  /** Whether padding in the fixed part is not zero. */
  hasPadding(from: Uint8Array, at: number): boolean;
}

/** A body that is just a structure. */
export function fixed<T>(layout: Struct<T>): Body<T> {
  return {
    fixed: layout as Struct<unknown>,
    tail: undefined,
    sizeOf: () => layout.size,
    write: (into, at, value) => layout.write(into, at, value),
    read: (from, at) => layout.read(from, at),
    hasPadding: (from, at) => layout.hasPadding(from, at),
  };
}

/**
 * A structure and bytes. `sizeField` names the field that counts them; without it they go to the end of
 * the message. Decoding does not copy: `data` is valid as long as the message is.
 */
export function withBytes<T extends object>(
  layout: Struct<T>,
  sizeField?: keyof T & string,
): Body<T & { data: Uint8Array }> {
  return {
    fixed: layout as Struct<unknown>,
    tail: sizeField ? `data u8[${sizeField}]` : 'data u8[to the end]',
    sizeOf: (value) => layout.size + value.data.length,
    write(into, at, value) {
      layout.write(into, at, value);
      into.set(value.data, at + layout.size);
    },
    read(from, at, length) {
      const head = layout.read(from, at);
      const size = sizeField ? (head[sizeField] as number) : length - layout.size;
      if (layout.size + size > length) return undefined;
      const start = at + layout.size;
      return Object.assign(head, { data: from.subarray(start, start + size) });
    },
    hasPadding: (from, at) => layout.hasPadding(from, at),
  };
}

/** A structure and `countField` equal elements, decoded as the property `name`. */
export function withArray<T extends object, N extends string, E>(
  layout: Struct<T>,
  name: N,
  element: FieldType<E>,
  countField: keyof T & string,
): Body<T & Record<N, E[]>> {
  return {
    fixed: layout as Struct<unknown>,
    tail: `${name} ${element.name}[${countField}]`,
    sizeOf: (value) => layout.size + value[name].length * element.size,
    write(into, at, value) {
      layout.write(into, at, value);
      let offset = at + layout.size;
      for (const item of value[name]) {
        element.write(into, offset, item);
        offset += element.size;
      }
    },
    read(from, at, length) {
      const head = layout.read(from, at);
      const count = head[countField] as number;
      if (layout.size + count * element.size > length) return undefined;
      const items: E[] = [];
      for (let i = 0; i < count; i++) items.push(element.read(from, at + layout.size + i * element.size));
      return Object.assign(head, { [name]: items } as Record<N, E[]>);
    },
    hasPadding: (from, at) => layout.hasPadding(from, at),
  };
}

/** A structure that decodes with the property `padding`: whether any of its padding was not zero. */
export function flagged<T extends object>(layout: Struct<T>): FieldType<T & { padding?: boolean }> {
  return {
    name: layout.name,
    size: layout.size,
    read: (from, at) => Object.assign(layout.read(from, at), { padding: layout.hasPadding(from, at) }),
    write: (into, at, value) => layout.write(into, at, value),
  };
}

/** A body that is nothing but bytes, to the end of the message. */
export const bytesOnly: Body<{ data: Uint8Array }> = withBytes({
  name: 'empty',
  size: 0,
  fields: [],
  offsetOf: () => 0,
  hasPadding: () => false,
  read: () => ({}),
  write: () => {},
});
