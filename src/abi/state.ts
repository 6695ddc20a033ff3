import { getU64, putU64 } from './bytes.ts';
import { EFER_LMA, type KvmRegs, kvmRegs, kvmSregs, type VcpuStateValues, vcpuState } from './x86.ts';

export const STATE_SIZE = vcpuState.size;
export const REGS_OFFSET = vcpuState.offsetOf('regs');
export const SREGS_OFFSET = vcpuState.offsetOf('sregs');
export const MSRS_OFFSET = vcpuState.offsetOf('msrs');

const regOffsets = Object.fromEntries(
  kvmRegs.fields.map((field) => [field.name, REGS_OFFSET + field.offset]),
) as Record<keyof KvmRegs, number>;

const controlOffsets = Object.fromEntries(
  (['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apic_base'] as const).map((name) => [
    name,
    SREGS_OFFSET + kvmSregs.offsetOf(name),
  ]),
) as Record<'cr0' | 'cr2' | 'cr3' | 'cr4' | 'cr8' | 'efer' | 'apic_base', number>;

const csBase = SREGS_OFFSET + kvmSregs.offsetOf('cs');
const CS_DB = csBase + 17;
const CS_L = csBase + 19;

export type GeneralRegister = keyof KvmRegs;
export type ControlRegister = keyof typeof controlOffsets;

/** Reads one register of a 536-byte state block without decoding the rest. */
export function getRegister(state: Uint8Array, name: GeneralRegister | ControlRegister): bigint {
  return getU64(state, regOffsets[name as GeneralRegister] ?? controlOffsets[name as ControlRegister]);
}

/** Writes one register of a 536-byte state block. */
export function putRegister(state: Uint8Array, name: GeneralRegister | ControlRegister, value: bigint): void {
  putU64(state, regOffsets[name as GeneralRegister] ?? controlOffsets[name as ControlRegister], value);
}

/** The kvm_regs part of a state block, not copied. */
export function regsOf(state: Uint8Array): Uint8Array {
  return state.subarray(REGS_OFFSET, REGS_OFFSET + kvmRegs.size);
}

/** The kvm_sregs part of a state block, not copied. */
export function sregsOf(state: Uint8Array): Uint8Array {
  return state.subarray(SREGS_OFFSET, SREGS_OFFSET + kvmSregs.size);
}

/** Sets the `mode` byte from cs and EFER.LMA: 8 in 64-bit code, else the default operand size 2 or 4. */
export function putMode(state: Uint8Array): void {
  const long = (getRegister(state, 'efer') & EFER_LMA) !== 0n;
  state[0] = long && state[CS_L] ? 8 : state[CS_DB] ? 4 : 2;
}

/** Everything in a state block as one object; for printing, not for hot paths. */
export function decodeState(state: Uint8Array): VcpuStateValues {
  return vcpuState.read(state, 0);
}
