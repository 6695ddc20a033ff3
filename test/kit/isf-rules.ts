import assert from 'node:assert/strict';

/*
 * The rules of Volatility 3 for symbol files (schema 6.2.0), and that what is named is there. A file is what JSON.parse
 * makes of it.
 */

type Json = Record<string, unknown>;
type Check = (value: unknown, file: Json, place: string) => void;

const is =
  (type: 'string' | 'boolean' | 'number'): Check =>
  (value, _file, place) =>
    assert.equal(typeof value, type, place);
const integer: Check = (value, _file, place) => assert.ok(Number.isInteger(value), place);
const word =
  (...words: string[]): Check =>
  (value, _file, place) =>
    assert.ok(words.includes(value as string), `${place}: ${String(value)}`);
const textLike =
  (pattern: RegExp): Check =>
  (value, _file, place) =>
    assert.match(value as string, pattern, place);
/** An object with these members and no others; those with `?` may be missing. */
const members =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value, file, place) => {
    assert.ok(typeof value === 'object' && value !== null, place);
    const left = new Set(Object.keys(value));
    for (const [key, check] of Object.entries(checks)) {
      const name = key.replace('?', '');
      const isThere = left.delete(name);
      assert.ok(isThere || key.endsWith('?'), `${place} has no ${name}`);
      if (isThere) check((value as Json)[name], file, `${place}.${name}`);
    }
    assert.deepEqual([...left], [], `${place} has what the schema does not know`);
  };
const each =
  (check: Check): Check =>
  (value, file, place) => {
    for (const [name, entry] of Object.entries(value as Json)) check(entry, file, `${place}.${name}`);
  };
/** A name that a part of the file has. */
const nameIn =
  (part: string): Check =>
  (value, file, place) =>
    assert.ok(
      Object.hasOwn(file[part] as Json, value as string),
      `${place}: ${part} has no ${String(value)}`,
    );

const type: Check = (value, file, place) => {
  const { kind } = value as { kind: string };
  assert.ok(Object.hasOwn(TYPES, kind), `${place}: ${kind}`);
  TYPES[kind]!(value, file, place);
};
const structure = members({ kind: is('string'), name: nameIn('user_types') });
const TYPES: Readonly<Record<string, Check>> = {
  pointer: members({ kind: is('string'), subtype: type }),
  base: members({ kind: is('string'), name: nameIn('base_types') }),
  array: members({ kind: is('string'), count: integer, subtype: type }),
  struct: structure,
  union: structure,
  class: structure,
  enum: members({ kind: is('string'), name: nameIn('enums') }),
  function: members({ kind: is('string') }),
  bitfield: members({
    kind: is('string'),
    bit_position: integer,
    bit_length: integer,
    type: (value, file, place) => {
      word('base', 'enum')((value as Json).kind, file, place);
      type(value, file, place);
    },
  }),
};

const source = members({
  kind: word('dwarf', 'symtab', 'system-map'),
  name: is('string'),
  'hash_type?': word('sha256'),
  'hash_value?': textLike(/^[0-9a-f]+$/i),
});

const FILE = members({
  metadata: members({
    format: textLike(/^6\.\d+\.\d+$/),
    'producer?': members({ 'name?': is('string'), 'version?': is('string'), 'datetime?': is('string') }),
    linux: members({ 'symbols?': each(source), 'types?': each(source) }),
  }),
  base_types: each(
    members({
      size: integer,
      signed: is('boolean'),
      kind: word('void', 'int', 'float', 'char', 'bool'),
      endian: word('little', 'big'),
    }),
  ),
  user_types: each(
    members({
      kind: word('struct', 'union', 'class'),
      size: integer,
      fields: each(members({ type, offset: integer, 'anonymous?': is('boolean') })),
    }),
  ),
  enums: each(members({ size: integer, base: nameIn('base_types'), constants: each(integer) })),
  symbols: each(
    members({
      address: is('number'),
      'linkage_name?': is('string'),
      'type?': type,
      'constant_data?': textLike(/^[A-Za-z0-9+/]*={0,2}$/),
    }),
  ),
});

/** Fails, and says where, unless `file` keeps the rules. */
export function assertIsf(file: unknown): void {
  FILE(file, file as Json, 'file');
  const { enums, base_types } = file as {
    enums: Record<string, { size: number; base: string }>;
    base_types: Record<string, { size: number }>;
  };
  for (const [name, { size, base }] of Object.entries(enums))
    assert.equal(base_types[base]!.size, size, `the reader takes the size of enum ${name} from its base`);
}
