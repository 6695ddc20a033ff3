import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import fc from 'fast-check';
import { Workspace } from '../workspace.ts';
import { type JournalState, readJournal } from './journal.ts';
import { exists, keyOf } from './vm-identity.ts';

const self = { pid: process.pid, started: 1 };
const STATE: JournalState = {
  vm: { uuid: '00000000-0000-0000-0000-000000000000', pid: 5, started: 6, socket: '1-2-3', peer: null },
  monitor: { qmp: '/run/vm.qmp' },
  host: self,
  guard: self,
  tcg: true,
  workspace: new Workspace(undefined).path,
  stub: { address: { host: '127.0.0.1', port: 1234 }, own: false },
  running: true,
  patches: [
    [0x1000, 0x90],
    [0x2000, null],
  ],
  handlers: ['ffffffff81000000'],
  borrowed: null,
  migrationEvents: true,
  nodes: ['kvmi-int3-in-guest-memory'],
};

describe('a journal', () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-journal-test-'));
  const path = join(directory, 'journal');
  after(() => rmSync(directory, { recursive: true }));

  function read(text: string): JournalState | undefined {
    rmSync(path, { force: true });
    writeFileSync(path, text, { mode: 0o600 });
    return readJournal(path);
  }

  test('is read as it was written', () => {
    assert.deepEqual(read(JSON.stringify(STATE)), STATE);
  });

  test('that others can read or write, or that is a link, is none', () => {
    assert.ok(read(JSON.stringify(STATE)));
    for (const mode of [0o620, 0o604, 0o640]) {
      chmodSync(path, mode);
      assert.equal(readJournal(path), undefined, mode.toString(8));
    }
    chmodSync(path, 0o600);
    const link = join(directory, 'link');
    symlinkSync(path, link);
    assert.equal(readJournal(link), undefined);
    assert.equal(readJournal(directory), undefined);
  });

  test('with a member that does not fit is none', () => {
    const wrong: Readonly<Record<string, unknown>> = {
      workspace: '/etc',
      patches: [[0x1000, 0x100]],
      handlers: ['../../etc'],
      running: 'yes',
      monitor: { qmp: 5 },
      vm: { ...STATE.vm, uuid: "'; stop" },
      stub: { address: {}, own: true },
      host: { pid: -1, started: 0 },
      borrowed: { vcpu: 0, registers: [['rip\n', '0']], places: [] },
      migrationEvents: 1,
      nodes: ['drive0'],
    };
    for (const [name, value] of Object.entries(wrong)) {
      assert.equal(read(JSON.stringify({ ...STATE, [name]: value })), undefined, name);
      const { [name as keyof JournalState]: _, ...without } = STATE;
      assert.equal(read(JSON.stringify(without)), undefined, `without ${name}`);
    }
  });

  test('of any content is read or is none', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => read(text) === undefined),
      { numRuns: 200 },
    );
  });
});

test('a VM is another one when its process started at another time, or its UUID is another one', () => {
  const { vm } = STATE;
  const keys = [vm, { ...vm, started: 7 }, { ...vm, pid: 7 }, { ...vm, uuid: vm.uuid.replace('0', '1') }].map(
    keyOf,
  );
  assert.equal(new Set(keys).size, keys.length);
  assert.equal(exists({ ...vm, pid: process.pid, started: 0 }, STATE.monitor), false);
});
