import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PhysicalMemory } from '../../machine/memory.ts';
import { type Patch, Patches } from './patches.ts';

const INT3 = 0xcc;

/** 16 bytes of guest memory; `stuck` ones do not change. */
function memoryOf(bytes: Uint8Array, stuck: readonly number[] = []): PhysicalMemory {
  return {
    regions: [],
    read(gpa, into) {
      into.set(bytes.subarray(gpa, gpa + into.length));
      return true;
    },
    write(gpa, from) {
      from.forEach((byte, i) => {
        if (!stuck.includes(gpa + i)) bytes[gpa + i] = byte;
      });
      return true;
    },
  };
}

async function write(
  patches: Patches,
  memory: PhysicalMemory,
  gpa: number,
  ...bytes: number[]
): Promise<void> {
  const from = Uint8Array.from(bytes);
  await patches.note(memory, gpa, from);
  await memory.write(gpa, from);
  patches.written(gpa, from);
}

test('a breakpoint is journalled until it is out of memory, and not only until that is wanted', async () => {
  const journal: (readonly Patch[])[] = [];
  const bytes = new Uint8Array(16).fill(0x90);
  const memory = memoryOf(bytes);
  const patches = new Patches((all) => journal.push(all));
  await patches.note(memory, 3, Uint8Array.of(INT3));
  assert.deepEqual(journal.at(-1), [[3, 0x90]], 'before it is written');
  bytes[3] = INT3;
  await patches.note(memory, 3, Uint8Array.of(0x90));
  assert.deepEqual(journal.at(-1), [[3, 0x90]], 'before it is taken out');
  bytes[3] = 0x90;
  patches.written(3, Uint8Array.of(0x90));
  assert.deepEqual(journal.at(-1), [[3, null]], 'a vCPU may have run into it just before');
  await write(patches, memory, 3, INT3);
  assert.deepEqual(journal.at(-1), [[3, 0x90]]);
});

test('what is restored was read back, and what the guest wrote meanwhile stays', async () => {
  const bytes = new Uint8Array(16).fill(0x90);
  const memory = memoryOf(bytes);
  const patches = new Patches();
  for (const gpa of [1, 2, 3]) await write(patches, memory, gpa, INT3);
  bytes[2] = 0x55;
  await write(patches, memory, 3, 0x90);
  bytes[3] = INT3;
  assert.deepEqual(await patches.restore(memory, [], new Set()), []);
  assert.deepEqual(
    [...bytes.subarray(0, 5)],
    [0x90, 0x90, 0x55, INT3, 0x90],
    "the last int3 is the guest's own",
  );
});

test('what does not go out of memory is named', async () => {
  const bytes = new Uint8Array(16).fill(0x90);
  const patches = new Patches();
  await write(patches, memoryOf(bytes), 1, INT3);
  await write(patches, memoryOf(bytes), 2, INT3);
  assert.deepEqual(await patches.restore(memoryOf(bytes, [2]), [], new Set()), [2]);
  assert.deepEqual(patches.armed, [2]);
});
