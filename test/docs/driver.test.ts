import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { RawFileMachine } from '../../examples/drivers/raw-file.ts';
import { introspect } from '../../src/index.ts';
import { Linux } from '../../src/linux/index.ts';
import { SyntheticLinux } from '../kit/synthetic-linux.ts';

/* The driver of docs/how-to/write-a-driver.md does what the page says, and is the one on the page. */

const root = join(import.meta.dirname, '..', '..', '..');

describe('docs/how-to/write-a-driver.md', () => {
  let directory: string;
  let machine: RawFileMachine;
  const linuxGuest = new SyntheticLinux();

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-driver-'));
    const path = join(directory, 'memory.raw');
    const { size } = linuxGuest.memory.regions[0]!;
    const bytes = new Uint8Array(size);
    linuxGuest.memory.read(0, bytes);
    writeFileSync(path, bytes);
    machine = new RawFileMachine(path);
  });
  after(async () => {
    await machine.close();
    rmSync(directory, { recursive: true });
  });

  test('the page shows the driver', () => {
    const page = readFileSync(join(root, 'docs', 'how-to', 'write-a-driver.md'), 'utf8');
    const source = readFileSync(join(root, 'examples', 'drivers', 'raw-file.ts'), 'utf8')
      .replace("'../../src/index.ts'", "'kvmi'")
      .replace("'../../src/machine/index.ts'", "'kvmi/machine'");
    assert.ok(page.includes(`\`\`\`ts\n${source}\`\`\``), 'the code on the page is another one');
  });

  test('a tool hooked to it reads memory, and is told what cannot be done', async () => {
    const guest = await introspect(machine, { onError: (error) => assert.fail(error) });
    const expected = new Uint8Array(64);
    linuxGuest.memory.read(0x10000, expected);
    assert.deepEqual(await guest.memory.readBytes(0x10000, 64), expected);
    assert.equal(guest.vcpus.length, 0);
    await assert.rejects(guest.setPageAccess([{ gpa: 0x1000, access: 0 }]), { code: 'E_REPLY' });
    await guest.detach();
  });

  test('the Linux in it is found', async () => {
    const linux = await Linux.find(machine.memory);
    const { rows } = await linux.processes();
    assert.ok(rows.some(({ pid }) => pid === 1));
  });
});
