import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Column, Row } from './columns.ts';
import { csv } from './csv.ts';
import { checkSettings, type Format, type Output, type OutputSettings, render } from './render.ts';
import { PLAIN } from './theme.ts';

const COLUMNS: readonly Column[] = [
  { name: 'pid', kind: 'decimal', key: true, about: '' },
  { name: 'name', kind: 'text', cut: true, about: '' },
  { name: 'uuid', kind: 'text', wide: true, about: '' },
  { name: 'memory', kind: 'size', about: '' },
  { name: 'rip', kind: 'hex', about: '' },
  { name: 'up', kind: 'boolean', about: '' },
];

const ROWS: readonly Row[] = [
  { pid: 17, name: 'web', uuid: 'u-1', memory: 256 << 20, rip: 0xffffffff81000000n, up: true },
  { pid: 1234, name: 'a,"b"\x1b[2J', memory: 1536, rip: 4096, up: false },
];

async function* each<T>(items: readonly T[]): AsyncGenerator<T> {
  yield* items;
}

interface Case extends Partial<OutputSettings> {
  readonly rows?: readonly Row[];
  readonly stream?: boolean;
  readonly terminal?: boolean;
  readonly width?: number;
  readonly reasons?: readonly string[];
  readonly text?: Output['text'];
}

async function lines(of: Case): Promise<string[]> {
  const { rows = ROWS, stream = false, terminal = false, width, reasons = [], text, ...settings } = of;
  const output = {
    command: 'list',
    columns: COLUMNS,
    rows: each(rows),
    stream,
    reasons,
    ...(text && { text }),
  };
  const all: string[] = [];
  const chosen = { filters: [], quiet: false, ...settings };
  for await (const line of render(output, chosen, { terminal, theme: PLAIN, ...(width && { width }) })) {
    all.push(line);
  }
  return all;
}

async function document(of: Case): Promise<Record<string, unknown>> {
  return JSON.parse((await lines({ ...of, format: 'json' })).join('\n')) as Record<string, unknown>;
}

test('a table aligns numbers to the right, shows sizes for people, and hides wide columns', async () => {
  assert.deepEqual(await lines({}), [
    ' PID  NAME           MEMORY  RIP                 UP',
    '  17  web           256 MiB  0xffffffff81000000  yes',
    '1234  a,"b"\\x1b[2J  1.5 KiB  0x1000              no',
  ]);
});

test('-o wide shows every column', async () => {
  const [heading] = await lines({ format: 'wide' });
  assert.match(heading!, /UUID/);
});

test('no rows make an empty table', async () => {
  assert.deepEqual(await lines({ rows: [] }), []);
});

test('on a narrow terminal only columns that may be cut are', async () => {
  const rows: Row[] = [{ pid: 1, name: 'x'.repeat(100), memory: 1, rip: 1, up: true }];
  const all = await lines({ rows, width: 60 });
  for (const line of all) assert.ok(line.length <= 60, `${line.length}: ${line}`);
  assert.match(all[1]!, /x{10,}…/);
  const unlimited = await lines({ rows });
  assert.match(unlimited[1]!, /x{100}/, 'nothing is cut when there is no terminal');
});

test('JSON: addresses are strings, sizes numbers, unknown cells null', async () => {
  assert.deepEqual(await document({}), {
    v: 1,
    command: 'list',
    rows: [
      { pid: 17, name: 'web', uuid: 'u-1', memory: 268435456, rip: '0xffffffff81000000', up: true },
      { pid: 1234, name: 'a,"b"\x1b[2J', uuid: null, memory: 1536, rip: '0x1000', up: false },
    ],
  });
});

test('JSON of no rows is a document, too', async () => {
  assert.deepEqual(await document({ rows: [] }), { v: 1, command: 'list', rows: [] });
});

test('what is missing is said in the data', async () => {
  const reasons = ['no memory at 0x1000'];
  const { partial, reasons: said } = await document({ reasons });
  assert.deepEqual([partial, said], [true, reasons]);
  const last = (await lines({ format: 'jsonl', reasons })).at(-1)!;
  assert.deepEqual(JSON.parse(last), { v: 1, partial: true, reasons });
});

test('JSON lines: one document a row', async () => {
  const all = await lines({ format: 'jsonl', columns: ['name', 'pid'] });
  assert.deepEqual(
    all.map((line) => JSON.parse(line)),
    [
      { v: 1, name: 'web', pid: 17 },
      { v: 1, name: 'a,"b"\x1b[2J', pid: 1234 },
    ],
  );
});

test('CSV quotes what needs it', async () => {
  assert.deepEqual(await lines({ format: 'csv', columns: ['pid', 'name', 'memory'] }), [
    'pid,name,memory',
    '17,web,268435456',
    '1234,"a,""b""\\x1b[2J",1536',
  ]);
});

test('CSV has no formula in a list that a guest has chosen', async () => {
  const columns: Column[] = [{ name: 'words', kind: 'list', about: 'words' }];
  const printed: string[] = [];
  for await (const line of csv(columns, [{ words: ['=1+1', 'x'] }])) printed.push(line);
  assert.deepEqual(printed, ['words', '"\'=1+1,x"']);
});

test('CSV has no formula that a guest has chosen', async () => {
  const names = ['=1+1', '+1', '-bash', '@SUM(1)', '=HYPERLINK("x,y")', 'a=b', "'=1", '\t=1', 'a;=b', '＝1'];
  const rows: Row[] = names.map((name) => ({ name, pid: -5 }));
  assert.deepEqual((await lines({ rows, format: 'csv', columns: ['name', 'pid'] })).slice(1), [
    "'=1+1,-5",
    "'+1,-5",
    "'-bash,-5",
    "'@SUM(1),-5",
    '"\'=HYPERLINK(""x,y"")",-5',
    'a=b,-5',
    "'=1,-5",
    '\\x09=1,-5',
    "a;'=b,-5",
    "'＝1,-5",
  ]);
});

test('-q prints keys alone', async () => {
  assert.deepEqual(await lines({ quiet: true }), ['17', '1234']);
});

test('a stream is a table on a terminal and JSON lines in a pipe', async () => {
  const [heading] = await lines({ stream: true, terminal: true });
  assert.match(heading!, /PID +NAME/);
  const [first] = await lines({ stream: true });
  assert.equal((JSON.parse(first!) as { pid: number }).pid, 17);
});

test("a command's own form is used until columns or a format are asked for", async () => {
  const text: Output['text'] = async function* (rows) {
    for await (const row of rows) yield `own ${row.pid}`;
  };
  assert.deepEqual(await lines({ text }), ['own 17', 'own 1234']);
  assert.deepEqual(await lines({ text, filters: ['pid>100'] }), ['own 1234']);
  assert.equal((await lines({ text, columns: ['pid'] }))[0], ' PID');
  assert.match((await lines({ text, format: 'table' }))[0]!, /PID/);
});

test('a wrong column or filter is found before anything is printed', () => {
  const check = (settings: Partial<OutputSettings>) => () =>
    checkSettings({ filters: [], quiet: false, ...settings }, COLUMNS);
  assert.throws(check({ columns: ['nmae'] }), { code: 'E_USAGE', hint: 'Did you mean name?' });
  assert.throws(check({ filters: ['zzz=1'] }), { code: 'E_USAGE' });
  assert.doesNotThrow(check({ columns: ['uuid'], filters: ['pid=1'] }));
});

test('every format takes a number beyond 2^53 without rounding', async () => {
  const rows: Row[] = [{ pid: 2n ** 60n, rip: 2n ** 64n - 1n }];
  for (const format of ['json', 'jsonl', 'csv', 'table'] as Format[]) {
    const text = (await lines({ rows, format })).join('\n');
    assert.match(text, /1152921504606846976/, format);
    assert.match(text, /0xffffffffffffffff/, format);
  }
});
