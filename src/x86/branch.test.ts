import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { mayBranchToItself } from './branch.ts';

const HERE = 0xffffffff81000000n;

describe('a branch that may lead to itself', () => {
  const YES = {
    'jmp $': 'ebfe',
    'jmp $, 4 bytes': 'e9fbffffff',
    'jne $': '75fe',
    'jne $, 4 bytes': '0f85faffffff',
    'loop $': 'e2fe',
    ret: 'c3',
    'jmp rax': 'ffe0',
    iretq: '48cf',
    sysretq: '480f07',
    'bytes that end before the instruction': '48',
    'no bytes': '',
  };
  const NO = {
    nop: '90',
    'jmp onwards': 'eb00',
    'jne back': '75f0',
    'call onwards': 'e800000000',
    'rep movsq': 'f348a5',
    'test al, 0': 'a800',
    'mov cr4, rax': '0f22e0',
    wrmsr: '0f30',
    'pause (rep nop)': 'f390',
    'endbr64 (has rep in front)': 'f30f1efa',
    'mov rax, [rbx]': '488b03',
  };
  for (const [expected, cases] of [
    [true, YES],
    [false, NO],
  ] as const)
    for (const [name, code] of Object.entries(cases))
      test(`${name}: ${expected ? 'yes' : 'no'}`, () => {
        assert.equal(mayBranchToItself(Buffer.from(code, 'hex'), HERE), expected);
      });
});
