import assert from 'node:assert/strict';
import { closeSync, writeSync } from 'node:fs';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { libc } from '../../../system/libc.ts';
import { ProcessMemory } from '../../../system/process-memory.ts';
import { Journal, openJournal, undoJournal } from './journal.ts';

function available(): boolean {
  try {
    libc();
    return true;
  } catch {
    return false;
  }
}

describe('the journal of a traced VM', { skip: available() ? false : 'needs koffi' }, () => {
  /** Memory of this process that plays a guest's. */
  const bytes = Buffer.alloc(4096);
  const own = (): { memory: ProcessMemory; at: (offset: number) => number } => ({
    memory: new ProcessMemory(process.pid),
    at: (offset) => Number(libc().addressOf(bytes)) + offset,
  });

  it('puts back what breakpoints have replaced, and nothing that was written since', () => {
    const { memory, at } = own();
    const journal = new Journal();
    const write = (offset: number, ...values: number[]): void => {
      const after = journal.beforeWrite(at(offset), Uint8Array.from(values), memory);
      bytes.set(values, offset);
      after?.();
    };
    bytes.set([0x55, 0x48, 0xcc, 0x90, 0xc3, 0x90], 0);
    for (const offset of [0, 1, 2, 3, 4]) write(offset, 0xcc);
    write(1, 0x48);
    write(3, 0x01, 0x02);
    write(3, 0xcc);
    assert.equal(undoJournal(journal.fd, memory), false, 'there is no MSR filter');
    assert.deepEqual([...bytes.subarray(0, 6)], [0x55, 0x48, 0xcc, 0x01, 0x02, 0x90]);
    journal.msrFilter = true;
    assert.equal(undoJournal(journal.fd, memory), true);
    journal.close();
    memory.close();
  });

  it('restores while the process lives', () => {
    const { memory, at } = own();
    const journal = new Journal();
    bytes[0] = 0x55;
    journal.beforeWrite(at(0), Uint8Array.of(0xcc), memory);
    bytes[0] = 0xcc;
    journal.restore(memory);
    assert.equal(bytes[0], 0x55);
    bytes[0] = 0xcc;
    journal.restore(memory);
    assert.equal(bytes[0], 0xcc, 'only once');
    journal.close();
    memory.close();
  });

  it('of any content changes nothing but int3', () => {
    const { memory } = own();
    bytes.fill(0x90);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 512 }), (content) => {
        const fd = openJournal();
        writeSync(fd, content);
        undoJournal(fd, memory);
        closeSync(fd);
        return bytes.every((byte) => byte === 0x90);
      }),
      { numRuns: 50 },
    );
    memory.close();
  });
});
