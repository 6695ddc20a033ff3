import { getU64 } from '../../abi/bytes.ts';
import { kvmRegs } from '../../abi/x86.ts';
import type { GdbClient } from './gdb.ts';

/** The general registers in the order of kvm_regs, with the names that gdb has for them. */
const REGISTERS = kvmRegs.fields.map(({ name, offset }) => ({
  offset,
  gdbName: name === 'rflags' ? 'eflags' : name,
}));

/**
 * Writes those registers of `wanted` that differ from `current` (both kvm_regs, 144 bytes). rip comes last: in code
 * that is not 64-bit QEMU cuts it by the mode that holds then.
 */
export async function writeChangedRegisters(
  gdb: GdbClient,
  vcpu: number,
  wanted: Uint8Array,
  current: Uint8Array,
): Promise<void> {
  const writes = REGISTERS.filter(({ offset }) => getU64(wanted, offset) !== getU64(current, offset))
    .sort((a, b) => Number(a.gdbName === 'rip') - Number(b.gdbName === 'rip'))
    .map(({ gdbName, offset }) => gdb.writeRegister(vcpu, gdbName, getU64(wanted, offset)));
  await Promise.all(writes);
}
