import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { btfImage } from '../../test/kit/btf-image.ts';
import { cpuTime } from '../../test/kit/cpu-time.ts';
import { assertIsf } from '../../test/kit/isf-rules.ts';
import { SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import { Btf } from '../btf/btf.ts';
import { sectionsOf } from '../reading/elf-file.ts';
import { isf, isfText, Linux, symbolsElf, typesFromFile } from './index.ts';

// biome-ignore lint/correctness/useYield: a walk that reads nothing
function* walkTo<T>(result: T): Generator<never, T> {
  return result;
}

describe('what is made from a guest for other tools', () => {
  let directory: string;
  let linux: Linux;
  const guest = new SyntheticLinux();
  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-export-'));
    linux = await Linux.find(guest.memory, { cache: false });
  });
  after(() => rmSync(directory, { recursive: true }));

  test('an ISF file has the types, the symbols as they were linked, and the banner', async () => {
    const file = await isf(linux);
    const { size, fields, kind } = file.user_types.task_struct!;
    assert.deepEqual([kind, size], ['struct', 512]);
    assert.deepEqual(fields.comm, {
      offset: 80,
      type: { kind: 'array', count: 16, subtype: { kind: 'base', name: 'char' } },
    });
    assert.deepEqual(fields.tasks, { offset: 32, type: { kind: 'struct', name: 'list_head' } });
    assert.deepEqual(fields.mm?.type, { kind: 'pointer', subtype: { kind: 'base', name: 'void' } });
    assert.deepEqual(file.symbols.init_task?.type, { kind: 'struct', name: 'task_struct' });
    const banner = Buffer.from(file.symbols.linux_banner!.constant_data!, 'base64').toString();
    assert.equal(banner, `${linux.kernel.banner}\n\0`);
    const { address } = file.symbols.init_task!;
    assert.equal(
      address - file.symbols._text!.address,
      linux.symbols.require('init_task') - linux.symbols.require('_text'),
    );
    assert.match(
      isfText(file),
      new RegExp(`"init_task":\\{"address":${address},`),
      'addresses are exact integers',
    );
    assert.equal(file.metadata.format, '6.2.0');
    assertIsf(JSON.parse(isfText(file)));
  });

  test('an ISF file keeps names that every JavaScript object has', async () => {
    const names = ['constructor', 'toString', '__proto__'];
    const member = { x: [0, 'u32'] } as const;
    const structs = Object.fromEntries(names.map((name) => [name, { size: 4, members: member }]));
    const members = Object.fromEntries(names.map((name, i) => [name, [4 * i, 'u32'] as const]));
    const types = new Btf(btfImage({ ...structs, owner: { size: 12, members } }));
    const symbols = names.map((name) => ({ name, address: linux.kernel.imageStart }));
    const odd = {
      kernel: { ...linux.kernel, loadTypes: () => walkTo(types) },
      symbols: Object.assign(symbols, { address: () => undefined }),
    } as unknown as Linux;
    const file = JSON.parse(isfText(await isf(odd)));
    const sorted = [...names].sort();
    const kept = (entries: object) =>
      Object.keys(entries)
        .filter((name) => names.includes(name))
        .sort();
    assert.deepEqual(kept(file.user_types), sorted);
    assert.deepEqual(kept(file.user_types.owner.fields), sorted);
    assert.deepEqual(kept(file.symbols), sorted);
  });

  test('an ISF file gives the types back', async () => {
    const path = join(directory, 'linux.json');
    writeFileSync(path, isfText(await isf(linux)));
    const typed = await Linux.find(guest.memory, { types: await typesFromFile(path) });
    assert.deepEqual((await typed.processes()).rows, (await linux.processes()).rows);
    assert.deepEqual((await typed.type('cred')).rows, (await linux.type('cred')).rows);
  });

  test('files that hold no types are refused', async () => {
    for (const [name, content] of [
      ['empty', ''],
      ['text', 'no types'],
      ['json', '{"base_types": {}}'],
      ['null', 'null'],
      ['elf', '\x7fELF'],
    ] as const) {
      const path = join(directory, name);
      writeFileSync(path, content);
      await assert.rejects(typesFromFile(path), { name: 'KvmiError' }, name);
    }
    await assert.rejects(typesFromFile(join(directory, 'none')), { code: 'E_KERNEL_FILE' });
  });

  test('the ELF file has each symbol at its address', () => {
    const modules = [
      { name: 'second', address: 0xffff_ffff_c000_2000n, type: 't', module: 'm' },
      { name: 'first', address: 0xffff_ffff_c000_1000n, type: 'T', module: 'm' },
      { name: 'undefined', address: 0n, type: 'U', module: 'm' },
    ];
    const file = Buffer.from(symbolsElf(linux, modules));
    const sections = sectionsOf(file);
    const table = sections.find(({ name }) => name === '.symtab')!.content!;
    const strings = sections.find(({ name }) => name === '.strtab')!.content!;
    const entry = (index: number) => {
      const name = table.readUInt32LE(24 * index);
      return {
        name: strings.toString('latin1', name, strings.indexOf(0, name)),
        address: table.readBigUInt64LE(24 * index + 8),
        size: table.readBigUInt64LE(24 * index + 16),
      };
    };
    assert.equal(table.length / 24, linux.symbols.size + 3);
    for (const index of [1, 500, linux.symbols.size]) {
      const { name, address } = linux.symbols.at(index - 1);
      assert.deepEqual([entry(index).name, entry(index).address], [name, address]);
    }
    assert.deepEqual(entry(linux.symbols.size + 1), {
      name: 'first',
      address: 0xffff_ffff_c000_1000n,
      size: 0x1000n,
    });
    assert.equal(entry(linux.symbols.size + 2).name, 'second');
    assert.deepEqual(
      sections.map(({ name }) => name).filter((name) => name === '.text' || name === '.modules'),
      ['.text', '.modules'],
    );
  });

  test('a kernel that says that all of its symbols are at one place is written soon', () => {
    const modules = Array.from({ length: 200_000 }, (_, i) => ({
      name: `s${i}`,
      address: 0xffff_ffff_c000_0000n,
      type: 't',
      module: 'm',
    }));
    const start = cpuTime();
    symbolsElf(linux, modules);
    assert.ok(cpuTime() - start < 5000);
  });
});
