import { getU16, getU32, getU64 } from '../../abi/bytes.ts';
import { getRegister } from '../../abi/state.ts';
import { vcpuState } from '../../abi/x86.ts';
import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import { SYMBOL_NAMES } from '../layout.ts';
import type { Session } from '../session.ts';
import { textRange } from './code.ts';
import type { Finding } from './finding.ts';
import { symbolic } from './hooks.ts';

/** Functions that a system call may lead to: their wrappers, and the one for calls that are not there. */
export const SYSCALL_NAME = /^(__x64_|__ia32_|__do_|__se_|sys_|compat_sys_|ksys_|stub_)/;
const TABLES = ['sys_call_table', 'ia32_sys_call_table', 'x32_sys_call_table'];
const MAX_ENTRIES = 1024;

/** Each entry of the tables of system calls must be the start of a function for one. */
export function* checkSyscalls(session: Session): Walk<Finding[]> {
  const { start, end } = textRange(session);
  const findings: Finding[] = [];
  for (const name of TABLES) {
    const base = session.kernel.symbols.address(name);
    if (base === undefined) continue;
    const entries = yield* session.attempt(name, tableEntries(session, base), []);
    for (const [number, address] of entries.entries()) {
      const inText = address >= start && address < end;
      const names = session.kernel.symbols.namesAt(address);
      if (inText && names.some((candidate) => SYSCALL_NAME.test(candidate))) continue;
      findings.push({
        check: 'syscall',
        subject: `${name}[${number}]`,
        address: base + BigInt(8 * number),
        expected: 'the start of a system call',
        found: symbolic(session, address),
      });
    }
  }
  return findings;
}

/** The addresses in a table, without the padding up to the next symbol. */
export function* tableEntries(session: Session, base: bigint): Walk<bigint[]> {
  const next = session.kernel.symbols.nextAfter(base) ?? base;
  const count = Math.min(MAX_ENTRIES, Math.floor(Number(next - base) / 8));
  const bytes = yield* session.space.read(base, count * 8);
  const entries = Array.from({ length: count }, (_, i) => getU64(bytes, 8 * i));
  while (entries.at(-1) === 0n) entries.pop();
  return entries;
}

/** A copy of a table that decides where the kernel goes on. */
export interface DispatchTable {
  readonly name: string;
  readonly start: Gva;
  readonly bytes: Uint8Array;
}

const MAX_TABLE = 16 * MAX_ENTRIES;

/** The tables of system calls and of interrupts, which do not change after boot. */
export function* readTables(session: Session): Walk<DispatchTable[]> {
  const { symbols } = session.kernel;
  const tables: DispatchTable[] = [];
  for (const name of [...TABLES, 'idt_table']) {
    const start = symbols.address(name);
    if (start === undefined) continue;
    const next = symbols.nextAfter(start) ?? start;
    const size = name === 'idt_table' ? GATE * VECTORS : Math.min(MAX_TABLE, Number(next - start));
    const bytes = yield* session.attempt(name, session.space.read(start, size), undefined);
    if (bytes !== undefined) tables.push({ name, start, bytes });
  }
  return tables;
}

/** Entries of tables that were others before. */
export function* checkTables(session: Session, before: readonly DispatchTable[]): Walk<Finding[]> {
  const findings: Finding[] = [];
  if (before.length === 0) return findings;
  for (const { name, start, bytes } of yield* readTables(session)) {
    const then = before.find((table) => table.name === name && table.start === start)?.bytes;
    if (then === undefined) continue;
    const [check, what, size] =
      name === 'idt_table' ? (['interrupt', 'vector ', GATE] as const) : (['syscall', name, 8] as const);
    for (let at = 0; at + size <= bytes.length; at += size) {
      const [was, is] = [then, bytes].map((table) => Buffer.from(table.subarray(at, at + size)));
      if (was!.equals(is!)) continue;
      const entry = at / size;
      findings.push({
        check,
        subject: check === 'interrupt' ? `${what}${entry}` : `${what}[${entry}]`,
        address: start + BigInt(at),
        expected: `${was!.toString('hex')} as before`,
        found: is!.toString('hex'),
      });
    }
  }
  return findings;
}

const GATE = 16;
const VECTORS = 256;
const PRESENT = 0x8000;

/** Where every interrupt enters: a section of its own in the kernel's text, which has symbols around it. */
function entryRange(session: Session): { readonly start: Gva; readonly end: Gva } {
  const { symbols } = session.kernel;
  const start = symbols.address('__entry_text_start');
  const end = symbols.address('__entry_text_end');
  return start === undefined || end === undefined ? textRange(session) : { start, end };
}

/** The gates of the interrupt table must lead to the kernel's entries. */
export function* checkInterrupts(session: Session): Walk<Finding[]> {
  const base = session.kernel.symbols.address('idt_table');
  if (base === undefined) return [];
  const { start, end } = entryRange(session);
  const bytes = yield* session.space.read(base, GATE * VECTORS);
  const findings: Finding[] = [];
  for (let vector = 0; vector < VECTORS; vector++) {
    const at = vector * GATE;
    if ((getU16(bytes, at + 4) & PRESENT) === 0) continue;
    const low = getU16(bytes, at) | (getU16(bytes, at + 6) << 16);
    const handler = (BigInt(getU32(bytes, at + 8)) << 32n) | BigInt(low >>> 0);
    if ((handler >= start && handler < end) || isEarly(session, vector, handler)) continue;
    findings.push({
      check: 'interrupt',
      subject: `vector ${vector}`,
      address: base + BigInt(at),
      expected: 'an entry of the kernel',
      found: symbolic(session, handler),
    });
  }
  return findings;
}

/** Vectors that no device and no exception uses keep what they had during boot: 9 or 13 bytes of code each. */
function isEarly(session: Session, vector: number, handler: bigint): boolean {
  const early = session.kernel.symbols.address('early_idt_handler_array');
  return early !== undefined && [9, 13].some((size) => handler === early + BigInt(vector * size));
}

/** MSRs that hold an address at which the kernel is entered, and the functions that may be there. */
const ENTRIES = [
  ['lstar', SYMBOL_NAMES.syscallEntry],
  ['cstar', SYMBOL_NAMES.compatSyscallEntry],
  ['sysenter_eip', SYMBOL_NAMES.sysenterEntry],
] as const;

/** The MSRs with the entries for system calls, and the interrupt table, of each vCPU. */
export function* checkEntries(session: Session, states: readonly Uint8Array[]): Walk<Finding[]> {
  const { kernel } = session;
  const table = kernel.symbols.address('idt_table');
  const tableGpa = table === undefined ? undefined : yield* kernel.translate(table);
  const findings: Finding[] = [];
  for (const [index, state] of states.entries()) {
    const { msrs, sregs } = vcpuState.read(state, 0);
    for (const [msr, names] of ENTRIES) {
      const value = msrs[msr];
      // Dumps do not hold them, and an entry that is switched off is 0.
      if (value === 0n || (yield* isEntry(session, value, names))) continue;
      findings.push({
        check: 'entry',
        subject: `${msr.toUpperCase()} of vCPU ${index}`,
        address: value,
        expected: names[0],
        found: symbolic(session, value),
      });
    }
    if (sregs.idt.base === 0n || tableGpa === undefined || getRegister(state, 'cr3') === 0n) continue;
    const gpa = yield* kernel.translate(sregs.idt.base);
    if (gpa === tableGpa) continue;
    findings.push({
      check: 'entry',
      subject: `interrupt table of vCPU ${index}`,
      address: sregs.idt.base,
      expected: `idt_table at guest-physical 0x${tableGpa.toString(16)}`,
      found: gpa === undefined ? 'not mapped' : `guest-physical 0x${gpa.toString(16)}`,
    });
  }
  return findings;
}

/** The same code, wherever it is mapped: Linux 4.19 enters through a copy of the mapping for each processor. */
function* isEntry(session: Session, address: Gva, names: readonly string[]): Walk<boolean> {
  const { kernel } = session;
  const known = names.map((name) => kernel.symbols.address(name)).filter((entry) => entry !== undefined);
  // A kernel without the function has none to compare with.
  if (known.length === 0 || known.includes(address)) return true;
  const gpa = yield* kernel.translate(address);
  for (const entry of known) if (gpa !== undefined && (yield* kernel.translate(entry)) === gpa) return true;
  return false;
}
