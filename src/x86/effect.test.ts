import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { KvmRegs } from '../abi/index.ts';
import { compute } from './alu.ts';
import { effectOf } from './effect.ts';

const RIP = 0xffffffff81000100n;
const RSP = 0xffffc90000003f00n;

const start: KvmRegs = {
  rax: 1n,
  rbx: 0xffff888000001000n,
  rcx: 0x80000000n,
  rdx: 0n,
  rsi: 0xffffffffffffffffn,
  rdi: 0x123456789abcdef0n,
  rsp: RSP,
  rbp: 0xffffc90000003f80n,
  r8: 8n,
  r9: 9n,
  r10: 10n,
  r11: 11n,
  r12: 12n,
  r13: 13n,
  r14: 0x7fffffffffffffffn,
  r15: 0x8000000000000000n,
  rip: RIP,
  rflags: 0x246n,
};

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.split(' '), (byte) => Number.parseInt(byte, 16));
}

interface Row {
  readonly hex: string;
  readonly text: string;
  /** What is different afterwards, apart from rip, which moves to the next instruction. */
  readonly after?: Partial<KvmRegs>;
  readonly stored?: bigint;
  readonly top?: bigint;
}

/** Status flags other than those given are 0; IF and bit 1 stay. */
const IF = 0x202n;
const [CF, PF, AF, ZF, SF, OF] = [1n, 4n, 0x10n, 0x40n, 0x80n, 0x800n];

const rows: readonly Row[] = [
  { hex: 'f3 0f 1e fa', text: 'endbr64' },
  { hex: '90', text: 'nop' },
  { hex: '66 90', text: 'xchg ax,ax' },
  { hex: '0f 1f 00', text: 'nop [rax]' },
  { hex: '0f 1f 40 00', text: 'nop [rax+0]' },
  { hex: '0f 1f 44 00 00', text: 'nop [rax+rax+0], the ftrace nop' },
  { hex: '66 0f 1f 44 00 00', text: 'nopw [rax+rax+0]' },
  { hex: '0f 1f 80 00 00 00 00', text: 'nop [rax+0] with 32 bits' },
  { hex: '0f 1f 84 00 00 00 00 00', text: 'nop [rax+rax+0] with 32 bits' },
  { hex: '66 0f 1f 84 00 00 00 00 00', text: 'nopw [rax+rax+0] with 32 bits' },
  { hex: '66 2e 0f 1f 84 00 00 00 00 00', text: 'nopw cs:[rax+rax+0]' },
  { hex: '55', text: 'push rbp', after: { rsp: RSP - 8n }, stored: start.rbp },
  { hex: '54', text: 'push rsp', after: { rsp: RSP - 8n }, stored: RSP },
  { hex: '41 57', text: 'push r15', after: { rsp: RSP - 8n }, stored: start.r15 },
  { hex: '6a ff', text: 'push -1', after: { rsp: RSP - 8n }, stored: 0xffffffffffffffffn },
  { hex: '68 00 00 00 80', text: 'push 0x80000000', after: { rsp: RSP - 8n }, stored: 0xffffffff80000000n },
  { hex: '5d', text: 'pop rbp', after: { rsp: RSP + 8n, rbp: 0x77n }, top: 0x77n },
  { hex: '5c', text: 'pop rsp', after: { rsp: 0x77n }, top: 0x77n },
  { hex: '41 5c', text: 'pop r12', after: { rsp: RSP + 8n, r12: 0x77n }, top: 0x77n },
  { hex: '48 89 e5', text: 'mov rbp,rsp', after: { rbp: RSP } },
  { hex: '48 8b ec', text: 'mov rbp,rsp, the other way', after: { rbp: RSP } },
  { hex: '49 89 fc', text: 'mov r12,rdi', after: { r12: start.rdi } },
  { hex: '89 f7', text: 'mov edi,esi', after: { rdi: 0xffffffffn } },
  { hex: 'b8 ff ff ff ff', text: 'mov eax,0xffffffff', after: { rax: 0xffffffffn } },
  { hex: '49 b9 f0 de bc 9a 78 56 34 12', text: 'movabs r9', after: { r9: 0x123456789abcdef0n } },
  { hex: '48 83 ec 28', text: 'sub rsp,0x28', after: { rsp: RSP - 0x28n, rflags: IF | PF | AF | SF } },
  { hex: '48 81 ec 00 01 00 00', text: 'sub rsp,0x100', after: { rsp: RSP - 0x100n, rflags: IF | PF | SF } },
  { hex: '48 83 c4 80', text: 'add rsp,-128', after: { rsp: RSP - 128n, rflags: IF | CF | SF } },
  { hex: '48 83 e4 f0', text: 'and rsp,-16', after: { rsp: RSP, rflags: IF | PF | SF } },
  { hex: '31 c0', text: 'xor eax,eax', after: { rax: 0n, rflags: IF | PF | ZF } },
  { hex: '48 85 f6', text: 'test rsi,rsi', after: { rflags: IF | PF | SF } },
  { hex: '85 d2', text: 'test edx,edx', after: { rflags: IF | PF | ZF } },
  { hex: '48 39 c2', text: 'cmp rdx,rax', after: { rflags: IF | CF | PF | AF | SF } },
  { hex: '4d 01 f6', text: 'add r14,r14', after: { r14: 0xfffffffffffffffen, rflags: IF | AF | SF | OF } },
  { hex: '4d 01 ff', text: 'add r15,r15', after: { r15: 0n, rflags: IF | CF | PF | ZF | OF } },
  { hex: '29 c1', text: 'sub ecx,eax', after: { rcx: 0x7fffffffn, rflags: IF | PF | AF | OF } },
  { hex: '83 c8 02', text: 'or eax,2', after: { rax: 3n, rflags: IF | PF } },
  { hex: '48 8d 6c 24 10', text: 'lea rbp,[rsp+0x10]', after: { rbp: RSP + 0x10n } },
  { hex: '4c 8d 54 24 08', text: 'lea r10,[rsp+8]', after: { r10: RSP + 8n } },
  { hex: '48 8d 04 cd 10 00 00 00', text: 'lea rax,[rcx*8+0x10]', after: { rax: 0x400000010n } },
  { hex: '43 8d 44 c8 ff', text: 'lea eax,[r8+r9*8-1]', after: { rax: 79n } },
  { hex: '48 8d 05 f9 ff ff ff', text: 'lea rax,[rip-7]', after: { rax: RIP } },
  { hex: 'eb fe', text: 'jmp itself', after: { rip: RIP } },
  { hex: 'e9 00 10 00 00', text: 'jmp 0x1005 on', after: { rip: RIP + 0x1005n } },
  {
    hex: 'e8 fb ff ff ff',
    text: 'call itself',
    after: { rip: RIP, rsp: RSP - 8n },
    stored: RIP + 5n,
  },
];

for (const { hex, text, after = {}, stored = 0n, top = 0n } of rows) {
  test(`carries out ${text}`, () => {
    const bytes = bytesOf(hex);
    const instruction = effectOf(Uint8Array.of(...bytes, 0xcc, 0xcc));
    assert.ok(instruction, 'is not decoded');
    assert.equal(instruction.length, bytes.length);
    const registers = { ...start };
    assert.equal(instruction.run(registers, top), stored);
    const expected = { ...start, rip: RIP + BigInt(bytes.length), ...after };
    for (const [name, value] of Object.entries(expected)) {
      assert.equal(registers[name as 'rax'].toString(16), value.toString(16), name);
    }
  });

  test(`does not guess at a part of ${text}`, () => {
    const bytes = bytesOf(hex);
    for (let size = 0; size < bytes.length; size++) {
      const part = effectOf(bytes.subarray(0, size));
      assert.ok(part === undefined || part.length <= size, `${size} bytes decode to ${part?.length}`);
    }
  });
}

const others: readonly [hex: string, text: string][] = [
  ['cc', 'int3'],
  ['c3', 'ret'],
  ['f4', 'hlt'],
  ['41 90', 'xchg r8d,eax'],
  ['f3 90', 'pause'],
  ['66 55', 'push bp'],
  ['66 89 e5', 'mov bp,sp'],
  ['48 8b 05 00 00 00 00', 'a load'],
  ['48 89 45 f8', 'a store'],
  ['65 48 8b 04 25 28 00 00 00', 'a load from gs'],
  ['48 83 d0 01', 'adc'],
  ['0f a2', 'cpuid'],
  ['0f 1f c8', 'a nop that is not /0'],
  ['f0 48 01 c0', 'lock'],
  ['67 48 8d 00', 'lea with a short address'],
  ['f3 0f 1e c8', 'rdsspd'],
  ['c5 f8 77', 'vzeroupper'],
];

for (const [hex, text] of others) {
  test(`leaves ${text} to the processor`, () => {
    assert.equal(effectOf(bytesOf(hex)), undefined);
  });
}

test('endbr64 and call are marked: shadow stacks and branch tracking see them', () => {
  const tracked = rows.filter(({ hex }) => effectOf(bytesOf(hex))!.tracked).map(({ text }) => text);
  assert.deepEqual(tracked, ['endbr64', 'call itself']);
});

/** The same with one-bit adders. */
function reference(operation: number, size: number, left: bigint, right: bigint) {
  const bit = (value: bigint, i: number) => Number((value >> BigInt(i)) & 1n);
  const subtract = operation === 5 || operation === 7;
  const arithmetic = operation === 0 || subtract;
  let carry = subtract ? 1 : 0;
  const carries: number[] = [];
  const bits: number[] = [];
  for (let i = 0; i < size; i++) {
    const a = bit(left, i);
    const b = bit(right, i);
    const addend = subtract ? 1 - b : b;
    if (arithmetic) {
      bits.push((a + addend + carry) & 1);
      carry = a + addend + carry > 1 ? 1 : 0;
      carries.push(carry);
    } else {
      bits.push(operation === 1 ? a | b : operation === 6 ? a ^ b : a & b);
    }
  }
  const result = bits.reduce((sum, each, i) => sum | (BigInt(each) << BigInt(i)), 0n);
  let flags = 0n;
  if (arithmetic) {
    const borrow = (carried: number) => (subtract ? 1 - carried : carried);
    if (borrow(carries[size - 1]!)) flags |= CF;
    if (borrow(carries[3]!)) flags |= AF;
    if (carries[size - 1]! !== carries[size - 2]!) flags |= OF;
  }
  if (bits.every((each) => each === 0)) flags |= ZF;
  if (bits[size - 1]) flags |= SF;
  if (bits.slice(0, 8).reduce((sum, each) => sum + each, 0) % 2 === 0) flags |= PF;
  return { result, flags };
}

const edge = fc.constantFrom(0n, 1n, 0x7fffffffn, 0x80000000n, 0xffffffffn, 1n << 63n, (1n << 64n) - 1n);
const word = fc.oneof(edge, fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));

test('results and flags are those of one-bit adders', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(0, 1, 4, 5, 6, 7, 8),
      fc.constantFrom<32 | 64>(32, 64),
      word,
      word,
      (operation, size, left, right) => {
        assert.deepEqual(compute(operation, size, left, right), reference(operation, size, left, right));
      },
    ),
    { numRuns: 3000 },
  );
});

test('random bytes are decoded to instructions of 1 to 15 bytes, or not at all', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 20 }), (bytes) => {
      const instruction = effectOf(bytes);
      if (instruction) assert.ok(instruction.length >= 1 && instruction.length <= bytes.length);
    }),
    { numRuns: 20_000 },
  );
});
