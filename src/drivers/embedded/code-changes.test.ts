import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import type { OpCache } from './cpu/op.ts';

const COUNT = '48 ff c0 eb fb'; // 1: inc rax; jmp 1b

describe('embedded: code that changes', () => {
  test('the next instruction sees what this one wrote', () => {
    const guest = new BareGuest('c6 05 01 00 00 00 2a b8 01 00 00 00 f4'); // the immediate of mov eax becomes 0x2a
    guest.machine.run(10);
    assert.equal(guest.get('rax'), 0x2an);
  });

  test('a loop that changes itself does what it says each time', () => {
    // mov ecx, 5; 1: add byte [rip + 1], 1 (the immediate below); add eax, 0; loop 1b; hlt
    const guest = new BareGuest('b9 05 00 00 00  80 05 02 00 00 00 01  83 c0 00  e2 f4  f4');
    guest.machine.run(40);
    assert.equal(guest.get('rax'), 1n + 2n + 3n + 4n + 5n);
  });

  test('a write from outside reaches code that ran before', () => {
    const guest = new BareGuest(COUNT);
    guest.machine.run(100);
    guest.write(BARE.code, '48 ff c1'); // inc rcx instead
    const before = guest.get('rax');
    guest.machine.run(100);
    assert.equal(guest.get('rax'), before);
    assert.ok(guest.get('rcx') >= 49n);
  });

  test('a breakpoint that is set and taken away leaves the code as it was', () => {
    const guest = new BareGuest(COUNT);
    guest.machine.run(100);
    guest.write(BARE.code, 'cc');
    guest.machine.run(5);
    assert.equal(guest.vector, 3);
    guest.write(BARE.code, '48');
    guest.cpu.attention = 0;
    guest.rip = BigInt(BARE.code);
    const before = guest.get('rax');
    guest.machine.run(100);
    assert.equal(guest.get('rax'), before + 50n);
  });

  test('data beside code can be written without harm to either', () => {
    // 1: inc qword [rip + 0x100]; jmp 1b
    const guest = new BareGuest('48 ff 05 00 01 00 00 eb f7');
    guest.machine.run(200);
    assert.equal(guest.machine.memory.data.getUint32(BARE.code + 0x107, true), 100);
  });

  test('code that another vCPU wrote is seen', () => {
    const guest = new BareGuest(COUNT, { vcpus: 2 });
    const other = guest.machine.vcpus[1]!;
    other.started = true;
    guest.write(0x11000, 'c7 04 25 00 00 01 00 48 ff c1 eb f4'); // mov dword [0x10000], "inc rcx; jmp"; hlt
    other.cpu.ripLo = 0x11000;
    guest.machine.run(20_000);
    assert.ok(guest.get('rcx') > 0n);
  });

  test('an instruction across pages is decoded from both', () => {
    const guest = new BareGuest('f4');
    const at = BARE.code + 0xffe;
    guest.write(at, 'b8 11 22 33 44 f4'); // mov eax, imm32 with two bytes on the first page
    guest.rip = BigInt(at);
    guest.machine.run(5);
    assert.equal(guest.get('rax'), 0x44332211n);
    guest.write(at + 4, '55');
    guest.cpu.attention = 0;
    guest.rip = BigInt(at);
    guest.machine.run(5);
    assert.equal(guest.get('rax'), 0x55332211n);
  });

  test('an instruction whose second page is missing faults with the address of that page', () => {
    const guest = new BareGuest('f4');
    const at = BARE.code + 0xffe;
    guest.write(at, 'b8 11 22 33 44 f4');
    guest.page(BARE.code + 0x1000, 0n, 1n);
    guest.rip = BigInt(at);
    guest.machine.run(5);
    assert.equal(guest.vector, 14);
    assert.equal(guest.cpu.cr2Lo, BARE.code + 0x1000);
  });

  test('the same page at two addresses is one piece of code', () => {
    const guest = new BareGuest('48 8d 05 00 00 00 00 f4'); // lea rax, [rip]; hlt
    guest.machine.memory.data.setUint32(BARE.pageTable + 0x60 * 8, BARE.code | 7, true);
    guest.machine.run(5);
    assert.equal(guest.get('rax'), BigInt(BARE.code + 7));
    guest.cpu.attention = 0;
    guest.rip = 0x60000n;
    guest.machine.run(5);
    assert.equal(guest.get('rax'), 0x60007n);
  });

  test('code that is entered at every byte takes bounded memory', () => {
    const guest = new BareGuest('f4', { memory: 4 * 1024 * 1024 });
    guest.machine.memory.data.setBigUint64(0x3008, 0x200087n, true);
    guest.write(0x200000, new Uint8Array(0x40000).fill(0x90));
    let executed = 0;
    for (let at = 0; at < 0x20000; at++) {
      guest.rip = BigInt(0x200000 + at);
      executed += guest.machine.run(64);
    }
    assert.equal(executed, 64 * 0x20000);
    const cached = (guest.machine.memory.code as OpCache).pages.reduce(
      (sum, { blocks }) => sum + blocks.length,
      0,
    );
    assert.ok(cached < 10_000, `${cached} blocks are kept`);
  });

  test('more code than is kept runs all the same', () => {
    const guest = new BareGuest('f4', { memory: 16 * 1024 * 1024 });
    const { memory } = guest.machine;
    // A jump in each page from 4 MiB on, to the next one: large pages map them.
    for (let i = 2; i < 8; i++) memory.data.setBigUint64(0x3000 + 8 * i, BigInt(i * 0x200000) | 0x87n, true);
    const pages = 1500;
    for (let i = 0; i < pages; i++) guest.write(0x400000 + i * 4096, 'e9 fb 0f 00 00');
    guest.write(0x400000 + pages * 4096, '48 ff c0 f4');
    guest.rip = 0x400000n;
    for (let round = 1n; round <= 2n; round++) {
      guest.machine.run(pages + 10);
      assert.equal(guest.get('rax'), round);
      guest.cpu.attention = 0;
      guest.rip = 0x400000n;
    }
  });
});
