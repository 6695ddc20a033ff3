import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { CR0, CR4, EFER } from './cpu/constants.ts';

const PRESENT = 1n;
const WRITE = 2n;
const USER = 4n;
const ACCESSED = 32n;
const DIRTY = 64n;
const NX = 1n << 63n;

const READ = '48 8b 04 25 00 00 03 00 f4'; // mov rax, [0x30000]; hlt
const STORE = '48 89 04 25 00 00 03 00 f4'; // mov [0x30000], rax; hlt
const JUMP = 'b8 00 00 03 00 ff e0'; // mov eax, 0x30000; jmp rax

/** Runs until the guest halts and says what it got: the vector and, for a page fault, its error code and CR2. */
function outcome(guest: BareGuest): string {
  guest.machine.run(100);
  if (guest.vector < 0) return 'none';
  if (guest.vector !== 14) return `#${guest.vector}`;
  const stack = Number(guest.get('rsp'));
  const code = guest.machine.memory.data.getUint32(stack, true);
  return `#PF ${code} at ${guest.cpu.cr2Lo.toString(16)}`;
}

interface Case {
  readonly name: string;
  readonly code: string;
  readonly ring3?: boolean;
  readonly set?: bigint;
  readonly clear?: bigint;
  readonly prepare?: (guest: BareGuest) => void;
  readonly expected: string;
}

const CASES: readonly Case[] = [
  { name: 'a mapped page is read', code: READ, expected: 'none' },
  { name: 'a page that is not present', code: READ, clear: PRESENT, expected: '#PF 0 at 30000' },
  { name: 'a write to a page that is not present', code: STORE, clear: PRESENT, expected: '#PF 2 at 30000' },
  { name: 'a write to a read-only page', code: STORE, clear: WRITE, expected: '#PF 3 at 30000' },
  {
    name: 'a write of the kernel to a read-only page without WP',
    code: STORE,
    clear: WRITE,
    prepare: ({ cpu }) => {
      cpu.cr0 &= ~CR0.WP;
    },
    expected: 'none',
  },
  { name: 'a kernel page from ring 3', code: READ, ring3: true, clear: USER, expected: '#PF 5 at 30000' },
  { name: 'a write from ring 3', code: STORE, ring3: true, clear: WRITE, expected: '#PF 7 at 30000' },
  { name: 'execution of an NX page', code: JUMP, set: NX, expected: '#PF 17 at 30000' },
  {
    name: 'execution of an NX page from ring 3',
    code: JUMP,
    ring3: true,
    set: NX,
    expected: '#PF 21 at 30000',
  },
  {
    name: 'NX without EFER.NXE is a reserved bit',
    code: READ,
    set: NX,
    prepare: ({ cpu }) => {
      cpu.efer &= ~EFER.NXE;
    },
    expected: '#PF 9 at 30000',
  },
  { name: 'a reserved address bit', code: READ, set: 1n << 45n, expected: '#PF 9 at 30000' },
  {
    name: 'the kernel executes a user page with SMEP',
    code: JUMP,
    prepare: (guest) => {
      guest.cpu.cr4 |= CR4.SMEP;
      for (const page of [BARE.code, BARE.handlers]) guest.page(page, 0n, USER);
    },
    expected: '#PF 17 at 30000',
  },
  { name: 'a non-canonical address', code: '48 b8 00 00 00 00 00 00 01 00 48 8b 18', expected: '#13' },
];

describe('embedded: paging', () => {
  for (const { name, code, ring3, set = 0n, clear = 0n, prepare, expected } of CASES) {
    test(name, () => {
      const guest = new BareGuest(code);
      guest.write(BARE.data, 'f4');
      guest.page(BARE.data, set, clear);
      prepare?.(guest);
      if (ring3) {
        guest.enterRing3();
        // HLT is for ring 0: a program that gets there is done.
        const got = outcome(guest);
        assert.equal(got === '#13' ? 'none' : got, expected);
      } else assert.equal(outcome(guest), expected);
    });
  }

  test('a read sets the accessed bit, a write the dirty bit', () => {
    const entry = (guest: BareGuest) =>
      guest.machine.memory.data.getBigUint64(BARE.pageTable + (BARE.data >> 12) * 8, true);
    const reader = new BareGuest(READ);
    reader.machine.run(2);
    assert.equal(entry(reader) & (ACCESSED | DIRTY), ACCESSED);
    const writer = new BareGuest(STORE);
    writer.machine.run(2);
    assert.equal(entry(writer) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
  });

  test('a read before a write does not lose the dirty bit', () => {
    const guest = new BareGuest(`${READ.replace(' f4', '')} ${STORE}`);
    guest.machine.run(3);
    const entry = guest.machine.memory.data.getBigUint64(BARE.pageTable + (BARE.data >> 12) * 8, true);
    assert.equal(entry & DIRTY, DIRTY);
  });

  test('an access across pages needs both, and writes neither when one is missing', () => {
    const guest = new BareGuest('48 89 04 25 fc 0f 03 00 f4'); // mov [0x30ffc], rax
    guest.set('rax', ~0n & 0xffff_ffff_ffff_ffffn);
    guest.page(BARE.data + 0x1000, 0n, PRESENT);
    assert.equal(outcome(guest), '#PF 2 at 31000');
    assert.equal(guest.machine.memory.data.getUint32(BARE.data + 0xffc, true), 0);
  });

  test('large pages translate', () => {
    const guest = new BareGuest('48 8b 04 25 08 00 23 00 f4', { memory: 4 * 1024 * 1024 }); // mov rax, [0x230008]
    guest.machine.memory.data.setBigUint64(0x3008, 0x200087n, true);
    guest.machine.memory.data.setBigUint64(0x230008, 0x1122334455667788n, true);
    assert.equal(outcome(guest), 'none');
    assert.equal(guest.get('rax'), 0x1122334455667788n);
  });

  test('a large page with bits below its address is reserved', () => {
    const guest = new BareGuest('48 8b 04 25 08 00 23 00 f4', { memory: 4 * 1024 * 1024 });
    guest.machine.memory.data.setBigUint64(0x3008, 0x202087n, true);
    assert.equal(outcome(guest), '#PF 9 at 230008');
  });

  test('addresses without memory read as ones and take no writes', () => {
    const guest = new BareGuest(`${READ.replace(' f4', '')} ff 04 25 00 00 03 00 f4`); // then inc dword [0x30000]
    guest.machine.memory.data.setBigUint64(BARE.pageTable + (BARE.data >> 12) * 8, 0x7000_0007n, true);
    assert.equal(outcome(guest), 'none');
    assert.equal(guest.get('rax'), 0xffff_ffff_ffff_ffffn);
  });

  test('a changed page table counts after INVLPG', () => {
    // mov rax, [0x30000]; mov qword [0x4180], 0x31007; invlpg [0x30000]; mov rbx, [0x30000]
    const guest = new BareGuest(
      '48 8b 04 25 00 00 03 00  48 c7 04 25 80 41 00 00 07 10 03 00  0f 01 3c 25 00 00 03 00  48 8b 1c 25 00 00 03 00 f4',
    );
    guest.machine.memory.data.setUint32(BARE.data, 1, true);
    guest.machine.memory.data.setUint32(BARE.data + 0x1000, 2, true);
    assert.equal(outcome(guest), 'none');
    assert.deepEqual([guest.get('rax'), guest.get('rbx')], [1n, 2n]);
  });
});
