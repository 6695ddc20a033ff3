/** A member: where it is, in bytes, and its C type: `u32`, `s64`, `void *`, `char[16]`, `struct list_head`. */
export type StructMembers = Readonly<Record<string, readonly [offset: number, type: string]>>;

export interface StructDefinition {
  readonly size: number;
  readonly members: StructMembers;
}

const KIND = { int: 1, ptr: 2, array: 3, struct: 4 } as const;
const INTS: Readonly<Record<string, readonly [size: number, signed: boolean]>> = {
  u8: [1, false],
  char: [1, true],
  u16: [2, false],
  u32: [4, false],
  s32: [4, true],
  u64: [8, false],
  s64: [8, true],
};

/** BTF with these structures, and the types that they need. */
export function btfImage(structs: Readonly<Record<string, StructDefinition>>): Buffer {
  const strings: Buffer[] = [Buffer.from('\0')];
  let stringSize = 1;
  const string = (text: string): number => {
    const bytes = Buffer.from(`${text}\0`);
    strings.push(bytes);
    stringSize += bytes.length;
    return stringSize - bytes.length;
  };
  const types: Buffer[] = [];
  const ids = new Map<string, number>();
  const add = (name: string, words: readonly number[]): number => {
    const bytes = Buffer.alloc(words.length * 4);
    words.forEach((word, i) => {
      bytes.writeUInt32LE(word >>> 0, 4 * i);
    });
    types.push(bytes);
    ids.set(name, types.length);
    return types.length;
  };
  for (const [name, [size, signed]] of Object.entries(INTS))
    add(name, [string(name), KIND.int << 24, size, ((signed ? 1 : 0) << 24) | (size * 8)]);
  add('void *', [0, KIND.ptr << 24, 0]);
  // Structures get their numbers before their members do, because they may refer to each other.
  const type = (name: string): number => {
    const known = ids.get(name);
    if (known !== undefined) return known;
    const array = /^(.*)\[(\d+)\]$/.exec(name);
    if (array !== null)
      return add(name, [0, KIND.array << 24, 0, type(array[1]!), ids.get('u32')!, Number(array[2])]);
    const struct = structs[name.replace('struct ', '')];
    if (struct === undefined) throw new Error(`no type ${name}`);
    const members = Object.entries(struct.members).map(([member, [offset, of]]) => [
      string(member),
      type(of),
      offset * 8,
    ]);
    const info = (KIND.struct << 24) | members.length;
    return add(name, [string(name.replace('struct ', '')), info, struct.size, ...members.flat()]);
  };
  for (const name of Object.keys(structs)) type(`struct ${name}`);
  const header = Buffer.alloc(24);
  const typeBytes = Buffer.concat(types);
  header.writeUInt16LE(0xeb9f, 0);
  header.writeUInt8(1, 2);
  header.writeUInt32LE(24, 4);
  header.writeUInt32LE(typeBytes.length, 12);
  header.writeUInt32LE(typeBytes.length, 16);
  header.writeUInt32LE(stringSize, 20);
  return Buffer.concat([header, typeBytes, ...strings]);
}
