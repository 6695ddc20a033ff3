import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { branchTarget, divertedTo } from './branch.ts';
import { decode, MAX_LENGTH } from './instruction.ts';

const bytesOf = (hex: string): Uint8Array => Buffer.from(hex.replaceAll(' ', ''), 'hex');

/** What kernels execute and programs do not. */
const PRIVILEGED: readonly [hex: string, text: string][] = [
  ['0f 22 df', 'mov cr3,rdi'],
  ['0f 20 e0', 'mov rax,cr4'],
  ['0f 23 87', 'mov db0,rdi, whose mode does not count'],
  ['0f 30', 'wrmsr'],
  ['0f 32', 'rdmsr'],
  ['0f 01 d1', 'xsetbv'],
  ['0f 01 c1', 'vmcall'],
  ['0f 01 d9', 'vmmcall'],
  ['0f 01 f8', 'swapgs'],
  ['0f 01 38', 'invlpg [rax]'],
  ['48 0f 01 5c 24 02', 'lidt [rsp+2]'],
  ['0f 00 d8', 'ltr ax'],
  ['48 cf', 'iretq'],
  ['48 0f 07', 'sysretq'],
  ['66 0f 38 82 04 24', 'invpcid rax,[rsp]'],
  ['f3 48 0f ae d8', 'wrgsbase rax'],
  ['0f c7 2f', 'xsaves [rdi], without REX.W'],
  ['cd 80', 'int 0x80'],
  ['ec', 'in al,dx'],
  ['67 f3 a4', 'rep movsb with short addresses'],
  ['48 b8 88 77 66 55 44 33 22 11', 'movabs rax'],
  ['48 a1 88 77 66 55 44 33 22 11', 'movabs rax,[moffs]'],
  ['c8 10 00 01', 'enter'],
  ['62 f1 7c 48 28 47 01', 'vmovaps zmm0,[rdi+64]'],
  ['8f e9 78 12 c0', 'llwpcb rax'],
  ['8f c0', 'pop rax, not XOP'],
];

describe('lengths of instructions', () => {
  for (const [hex, text] of PRIVILEGED) {
    test(text, () => {
      const bytes = bytesOf(hex);
      assert.equal(decode(Buffer.concat([bytes, Buffer.alloc(MAX_LENGTH, 0x90)]))?.length, bytes.length);
    });
  }

  test('what is none, or cut off, is not decoded', () => {
    for (const hex of ['06', '66', '48', '0f', '0f 0a', 'e8 00 00 00', '62 f1', `${'66 '.repeat(15)}90`])
      assert.equal(decode(bytesOf(hex)), undefined, hex);
  });

  test('any bytes: no exception, and nothing beyond their end', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 20 }), fc.nat(4), (bytes, at) => {
        const instruction = decode(bytes, at);
        if (instruction === undefined) return;
        assert.ok(instruction.length >= 1 && instruction.length <= MAX_LENGTH);
        assert.ok(at + instruction.length <= bytes.length);
      }),
      { numRuns: 20_000 },
    );
  });

  const LIBRARY = '/lib/x86_64-linux-gnu/libc.so.6';
  const missing = [LIBRARY, '/usr/bin/objdump'].find((path) => !existsSync(path));
  test('those of the C library are what objdump says', { skip: missing && `${missing} is missing` }, () => {
    const listing = execFileSync('objdump', ['-d', '-w', '-j', '.text', LIBRARY], {
      encoding: 'latin1',
      maxBuffer: 1 << 28,
    });
    let compared = 0;
    for (const [line, hex, text] of listing.matchAll(/^ *[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t(.*)$/gm)) {
      if (text!.startsWith('.byte') || text!.includes('(bad)')) continue;
      const bytes = bytesOf(hex!);
      const decoded = decode(Buffer.concat([bytes, Buffer.alloc(MAX_LENGTH, 0x90)]));
      assert.equal(decoded?.length, bytes.length, line);
      const target = /^(?:call|j\w+) +([0-9a-f]+) </.exec(text!)?.[1];
      if (target !== undefined) {
        const address = BigInt(`0x${/[0-9a-f]+/.exec(line!)![0]}`);
        assert.equal(branchTarget(decoded!, address), BigInt(`0x${target}`), line);
      }
      compared++;
    }
    assert.ok(compared > 100_000, `${compared} instructions were compared`);
  });
});

test('what takes the place of the start of a function leads somewhere for sure', () => {
  const at = 0xffffffff81000000n;
  const cases: readonly [hex: string, target: bigint | undefined][] = [
    ['e9 fb 0f 00 00', at + 0x1000n],
    ['68 00 10 00 80 c3', 0xffffffff80001000n],
    ['68 00 10 00 80 c7 44 24 04 ff ff ff ff c3', 0xffffffff80001000n],
    ['48 b8 00 10 00 c0 ff ff ff ff ff e0', 0xffffffffc0001000n],
    ['48 b8 00 10 00 c0 ff ff ff ff 50 c3', 0xffffffffc0001000n],
    ['49 bb 00 10 00 c0 ff ff ff ff 41 ff e3', 0xffffffffc0001000n],
    ['49 bb 00 10 00 c0 ff ff ff ff ff e3', undefined],
    ['48 b8 00 10 00 c0 ff ff ff ff ff e1', undefined],
    ['48 b8 00 10 00 c0 ff ff ff ff ff d0', undefined],
    ['e8 fb 0f 00 00', undefined],
    ['68 00 10 00 80 90', undefined],
    ['55 48 89 e5', undefined],
  ];
  for (const [hex, target] of cases) assert.equal(divertedTo(bytesOf(hex), 0, at), target, hex);
});
