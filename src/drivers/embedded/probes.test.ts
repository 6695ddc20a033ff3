import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { TestHandler } from '../../../test/kit/handler.ts';

const CODE = BigInt(BARE.code);

/** Runs a program with probes at offsets of its code; how often each was hit. */
async function hits(program: string, ...offsets: number[]): Promise<number[]> {
  const bare = new BareGuest(program);
  await TestHandler.attach(bare.machine);
  const counts = offsets.map(() => 0);
  offsets.forEach((offset, i) => {
    bare.machine.probes.set(CODE + BigInt(offset), ({ index }) => {
      assert.equal(index, 0);
      assert.equal(bare.rip, CODE + BigInt(offset), 'rip is exact');
      counts[i]!++;
      return undefined;
    });
  });
  bare.machine.run(100_000);
  assert.ok(bare.cpu.halted, 'the program ends');
  return counts;
}

test('at the beginning of a block, within it, and at its end', async () => {
  // mov ecx, 5; inc eax; inc edx; dec ecx; jnz inc eax; hlt
  assert.deepEqual(await hits('b905000000 ffc0 ffc2 ffc9 75f8 f4', 5, 7, 11, 13), [5, 5, 5, 1]);
});

test('a REP instruction is come to once, however long it is', async () => {
  // mov ecx, 2000; mov edi, data; rep stosb; hlt
  assert.deepEqual(await hits('b9d0070000 bf00000300 f3aa f4', 10, 12), [1, 1]);
});

test('an instruction on two pages', async () => {
  const bare = new BareGuest('e9f90f0000'); // jmp to 0x10ffe
  bare.write(BARE.code + 0xffe, 'b801000000 f4'); // mov eax, 1; hlt
  await TestHandler.attach(bare.machine);
  let count = 0;
  bare.machine.probes.set(CODE + 0xffen, () => {
    count++;
    return undefined;
  });
  bare.machine.run(1000);
  assert.deepEqual([count, bare.get('rax')], [1, 1n]);
});

test('the same code at another address is not come to', async () => {
  const bare = new BareGuest('e9fb001000'); // jmp to 0x110100
  const second = BARE.code + 0x100000;
  const entry = BARE.pageTable + (second >>> 12) * 8;
  bare.machine.memory.data.setBigUint64(entry, CODE | 7n, true);
  bare.machine.views.flush();
  bare.write(BARE.code + 0x100, 'ffc0 f4'); // inc eax; hlt
  await TestHandler.attach(bare.machine);
  const seen: bigint[] = [];
  for (const address of [CODE + 0x100n, BigInt(second) + 0x100n]) {
    bare.machine.probes.set(address, () => {
      seen.push(address);
      return undefined;
    });
  }
  bare.machine.run(1000);
  assert.deepEqual([seen, bare.get('rax')], [[BigInt(second) + 0x100n], 1n]);
});

test('one at an address, and none after it is taken back or the machine is detached', async () => {
  const bare = new BareGuest('ffc0 ebfc'); // inc eax; jmp
  await TestHandler.attach(bare.machine);
  const { probes } = bare.machine;
  let count = 0;
  const hit = (): undefined => {
    count++;
  };
  const remove = probes.set(CODE, hit);
  assert.throws(() => probes.set(CODE, hit), { code: 'E_BUSY' });
  bare.machine.run(100);
  assert.equal(count, 50);
  remove();
  bare.machine.run(100);
  probes.set(CODE, hit);
  bare.machine.detach();
  bare.machine.run(100);
  assert.equal(count, 50);
});
