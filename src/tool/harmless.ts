import { attempt, then } from '../awaitable.ts';
import type { CpuidLeaf } from '../machine/index.ts';
import type { GuestEvent } from './event.ts';

const NO_LEAF: CpuidLeaf = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/**
 * Answers an event as if it had not been intercepted. That is `continue`, but for CPUID: there the tool
 * carries the instruction out.
 */
export function answerHarmlessly(event: GuestEvent): void {
  if (event.name === 'CPUID' && !event.answered) passCpuid(event as GuestEvent<'CPUID'>);
  else event.reply();
}

function passCpuid(event: GuestEvent<'CPUID'>): void {
  const { function: leaf, index, insn_length } = event.data;
  const values = attempt<CpuidLeaf | undefined>(
    () => event.vcpu.cpuid(leaf, index),
    () => undefined,
  );
  void then(values, (found) => {
    const { registers } = event;
    const { eax, ebx, ecx, edx } = found ?? NO_LEAF;
    registers.rax = BigInt(eax);
    registers.rbx = BigInt(ebx);
    registers.rcx = BigInt(ecx);
    registers.rdx = BigInt(edx);
    registers.rip += BigInt(insn_length);
    event.reply('continue', { registers });
  });
}
