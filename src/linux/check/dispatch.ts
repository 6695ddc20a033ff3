import { getU16, getU32, getU64 } from '../../abi/bytes.ts';
import { getRegister } from '../../abi/state.ts';
import { vcpuState } from '../../abi/x86.ts';
import type { Session } from '../session.ts';
import { hex } from '../text.ts';
import type { Walk } from '../walk.ts';
import type { Finding } from './finding.ts';
import { symbolic } from './hooks.ts';
import { textRange } from './text.ts';

/** Functions that a system call may lead to: their wrappers, and the one for calls that are not there. */
const SYSCALL_NAME = /^(__x64_|__ia32_|__do_|__se_|sys_|compat_sys_|ksys_|stub_)/;
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
        address: hex(base + BigInt(8 * number)),
        expected: 'the start of a system call',
        found: symbolic(session, address),
      });
    }
  }
  return findings;
}

function* tableEntries(session: Session, base: bigint): Walk<bigint[]> {
  const next = session.kernel.symbols.nextAfter(base) ?? base;
  const count = Math.min(MAX_ENTRIES, Math.floor(Number(next - base) / 8));
  const bytes = yield* session.space.read(base, count * 8);
  const entries = Array.from({ length: count }, (_, i) => getU64(bytes, 8 * i));
  // What follows the table up to the next symbol is padding.
  while (entries.at(-1) === 0n) entries.pop();
  return entries;
}

const GATE = 16;
const VECTORS = 256;
const PRESENT = 0x8000;

/** The gates of the interrupt table must lead into the kernel's text. */
export function* checkInterrupts(session: Session): Walk<Finding[]> {
  const base = session.kernel.symbols.address('idt_table');
  if (base === undefined) return [];
  const { start, end } = textRange(session);
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
      address: hex(base + BigInt(at)),
      expected: 'a handler in the text of the kernel',
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

const ENTRIES = ['entry_SYSCALL_64', 'entry_SYSCALL_64_trampoline'];

/** The MSR with the entry for system calls, and the interrupt table, of each vCPU. */
export function* checkEntries(session: Session, states: readonly Uint8Array[]): Walk<Finding[]> {
  const { kernel } = session;
  const known = ENTRIES.map((name) => kernel.symbols.address(name)).filter(
    (address) => address !== undefined,
  );
  const table = kernel.symbols.address('idt_table');
  const tableGpa = table === undefined ? undefined : yield* kernel.translate(table);
  const findings: Finding[] = [];
  for (const [index, state] of states.entries()) {
    const { msrs, sregs } = vcpuState.read(state, 0);
    // Dumps do not hold it.
    if (msrs.lstar !== 0n && !known.includes(msrs.lstar)) {
      findings.push({
        check: 'entry',
        subject: `LSTAR of vCPU ${index}`,
        address: hex(msrs.lstar),
        expected: ENTRIES[0]!,
        found: symbolic(session, msrs.lstar),
      });
    }
    if (sregs.idt.base === 0n || tableGpa === undefined || getRegister(state, 'cr3') === 0n) continue;
    const gpa = yield* kernel.translate(sregs.idt.base);
    if (gpa === tableGpa) continue;
    findings.push({
      check: 'entry',
      subject: `interrupt table of vCPU ${index}`,
      address: hex(sregs.idt.base),
      expected: `idt_table at guest-physical 0x${tableGpa.toString(16)}`,
      found: gpa === undefined ? 'not mapped' : `guest-physical 0x${gpa.toString(16)}`,
    });
  }
  return findings;
}
