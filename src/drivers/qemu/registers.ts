import { getU64 } from '../../abi/bytes.ts';
import { regsOf, STATE_SIZE } from '../../abi/state.ts';
import { kvmRegs } from '../../abi/x86.ts';
import type { GdbClient } from './gdb.ts';
import type { StoppedVcpu } from './stopped-vcpu.ts';

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

/** Writes the registers (kvm_regs) that the handler wants, where nothing else is to be carried out. */
export async function writeReleasedRegisters(vcpu: StoppedVcpu, wanted: Uint8Array): Promise<void> {
  const block = new Uint8Array(STATE_SIZE);
  (await vcpu.state()).writeBlock(block);
  await writeChangedRegisters(vcpu.gdb, vcpu.index, wanted, regsOf(block));
}
