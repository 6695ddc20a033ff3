import { EVENT_MSRS, type GeneralRegister, kvmRegs } from '../abi/index.ts';
import { UsageError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import { type Parse, parseNumber } from '../input/values.ts';
import type { Row } from '../rows/columns.ts';
import { formatHex } from '../rows/columns.ts';
import type { Registers } from '../tool/index.ts';

/** rax … r15, rip, rflags. */
export const GENERAL_NAMES = kvmRegs.fields.map((field) => field.name as GeneralRegister);

/** Bits of a register by position: what people look for first. */
type Bits = readonly (readonly [position: number, name: string])[];

const RFLAGS: Bits = [
  [0, 'CF'],
  [2, 'PF'],
  [4, 'AF'],
  [6, 'ZF'],
  [7, 'SF'],
  [8, 'TF'],
  [9, 'IF'],
  [10, 'DF'],
  [11, 'OF'],
  [14, 'NT'],
  [16, 'RF'],
  [17, 'VM'],
  [18, 'AC'],
  [21, 'ID'],
];
const CR0: Bits = [
  [0, 'PE'],
  [1, 'MP'],
  [2, 'EM'],
  [3, 'TS'],
  [4, 'ET'],
  [5, 'NE'],
  [16, 'WP'],
  [18, 'AM'],
  [29, 'NW'],
  [30, 'CD'],
  [31, 'PG'],
];
const CR4: Bits = [
  [0, 'VME'],
  [2, 'TSD'],
  [3, 'DE'],
  [4, 'PSE'],
  [5, 'PAE'],
  [6, 'MCE'],
  [7, 'PGE'],
  [8, 'PCE'],
  [9, 'OSFXSR'],
  [10, 'OSXMMEXCPT'],
  [11, 'UMIP'],
  [12, 'LA57'],
  [13, 'VMXE'],
  [14, 'SMXE'],
  [16, 'FSGSBASE'],
  [17, 'PCIDE'],
  [18, 'OSXSAVE'],
  [20, 'SMEP'],
  [21, 'SMAP'],
  [22, 'PKE'],
  [23, 'CET'],
];
const EFER: Bits = [
  [0, 'SCE'],
  [8, 'LME'],
  [10, 'LMA'],
  [11, 'NXE'],
  [12, 'SVME'],
];
const BITS: Readonly<Record<string, Bits>> = { rflags: RFLAGS, cr0: CR0, cr4: CR4, efer: EFER };

const CONTROL = ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apic_base'] as const;
const SEGMENTS = ['cs', 'ss', 'ds', 'es', 'fs', 'gs', 'tr', 'ldt'] as const;
const TABLES = ['gdt', 'idt'] as const;

/** MSRs that can be given by name: those of events, and the bases of fs and gs. */
const MSR_NAMES: Readonly<Record<string, number>> = {
  ...EVENT_MSRS,
  fs_base: 0xc0000100,
  gs_base: 0xc0000101,
  tsc_aux: 0xc0000103,
  apic_base: 0x1b,
  misc_enable: 0x1a0,
};

/** The index of an MSR, as a number or by name. */
export const msrIndex: Parse<number> = (text) => {
  const named = Object.hasOwn(MSR_NAMES, text.toLowerCase()) ? MSR_NAMES[text.toLowerCase()] : undefined;
  const index = named ?? parseNumber(text);
  if (index !== undefined && index <= 0xffffffff) return Number(index);
  const names = Object.keys(MSR_NAMES);
  throw new UsageError(
    `--msr: ${JSON.stringify(text)} is no index and no known name`,
    didYouMean(text, names) ?? `Give the index, 0xc0000082, or a name: ${names.join(', ')}.`,
  );
};

function flags(value: bigint, bits: Bits): string {
  const set = bits.filter(([position]) => (value >> BigInt(position)) & 1n).map(([, name]) => name);
  return `[${['', ...set, ''].join(' ')}]`;
}

function meaning(name: string, value: bigint): string {
  const bits = BITS[name];
  if (bits) return flags(value, bits);
  return name === 'rip' ? '' : BigInt.asIntN(64, value).toString();
}

/** rax … rflags of a vCPU, as rows. */
export function* generalRows(vcpu: number, registers: Registers): Generator<Row> {
  for (const register of GENERAL_NAMES) {
    const value = registers[register];
    yield { vcpu, group: 'general', register, value, meaning: meaning(register, value) };
  }
}

/** Control registers, segments and descriptor tables. */
export function* systemRows(vcpu: number, registers: Registers): Generator<Row> {
  for (const register of CONTROL) {
    const value = registers[register];
    yield {
      vcpu,
      group: 'control',
      register,
      value,
      meaning: BITS[register] ? meaning(register, value) : '',
    };
  }
  for (const register of SEGMENTS) {
    const { selector, base, limit, type, dpl, present, l, unusable } = registers[register];
    const state = unusable ? 'unusable' : present ? 'present' : 'not present';
    const text = `base ${formatHex(base)} limit ${formatHex(limit)} type ${type} dpl ${dpl} ${state}${l ? ' 64-bit' : ''}`;
    yield { vcpu, group: 'segment', register, value: selector, meaning: text };
  }
  for (const register of TABLES) {
    const { base, limit } = registers[register];
    yield { vcpu, group: 'table', register, value: base, meaning: `limit ${formatHex(limit)}` };
  }
}

/** MSRs that were asked for. */
export function* msrRows(vcpu: number, registers: Registers, indices: readonly number[]): Generator<Row> {
  for (const index of indices) {
    const name = Object.entries(MSR_NAMES).find(([, each]) => each === index)?.[0];
    const value = registers.msr(index);
    if (value === undefined) continue;
    yield {
      vcpu,
      group: 'msr',
      register: name ?? formatHex(index),
      value,
      meaning: `MSR ${formatHex(index)}`,
    };
  }
}
