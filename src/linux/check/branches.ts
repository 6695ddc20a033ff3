import { getS32 } from '../../abi/bytes.ts';
import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import { divertedTo } from '../../x86/branch.ts';
import { afterEndbr } from '../../x86/instruction.ts';
import type { Session } from '../session.ts';
import type { TextImage } from './code.ts';
import { SYSCALL_NAME, tableEntries } from './dispatch.ts';
import type { Finding } from './finding.ts';
import { symbolic } from './hooks.ts';
import type { Sites } from './sites.ts';

/** The longest sequence of `divertedTo`, with endbr64 before it. */
const LONGEST = 4 + 14;

/** Letters of functions in a table of symbols. */
const CODE = new Set([...'TtWw'].map((letter) => letter.charCodeAt(0)));

/** Functions that are made to be redirected: trampolines of static calls, dispatchers of eBPF. */
const REDIRECTED = /^(__SCT__|__static_call|bpf_dispatcher_)/;

/**
 * Functions that start with a jump out of the kernel's text, which is how foreign code takes their place. The kernel
 * itself puts a call there (ftrace), or a breakpoint or a jump of a kprobe, which is on its list.
 */
export function checkFunctionStarts(session: Session, text: TextImage, sites: Sites): Finding[] {
  const { symbols } = session.kernel;
  const { types, addresses } = symbols.arrays;
  const end = text.start + BigInt(text.bytes.length);
  const findings: Finding[] = [];
  for (let i = 0; i < types.length; i++) {
    if (!CODE.has(types[i]!)) continue;
    const address = addresses[i]!;
    if (address < text.start || address + BigInt(LONGEST) > end) continue;
    const at = Number(address - text.start);
    const first = afterEndbr(text.bytes, at);
    const target = divertedTo(text.bytes, first, text.start + BigInt(first));
    if (target === undefined || (target >= text.start && target < end)) continue;
    const site = sites.at.get(text.start + BigInt(first))?.kind;
    if (site === 'kprobe' || site === 'static call' || REDIRECTED.test(symbols.name(i))) continue;
    findings.push({
      check: 'text',
      subject: symbols.name(i),
      address: text.start + BigInt(first),
      expected: 'a function that starts with code of its own',
      found: `a jump to ${symbolic(session, target)}`,
    });
  }
  return findings;
}

/** Kernels that do not call through the table of system calls have a function with a direct call for each. */
const DISPATCHERS = [
  ['x64_sys_call', 'sys_call_table'],
  ['ia32_sys_call', 'ia32_sys_call_table'],
] as const;

const CALL = 0xe8;
const JMP = 0xe9;
const NOT_IMPLEMENTED = /^(__x64_|__ia32_)?sys_ni_syscall$/;

/** Every system call of a table must still be reached by a direct call or jump of the function that dispatches them. */
export function* checkDispatchers(session: Session, text: TextImage): Walk<Finding[]> {
  const { symbols } = session.kernel;
  const findings: Finding[] = [];
  for (const [name, table] of DISPATCHERS) {
    const start = symbols.address(name);
    const base = symbols.address(table);
    if (start === undefined || base === undefined) continue;
    const reached = branchTargets(text, start, symbols.nextAfter(start) ?? start);
    const entries = yield* session.attempt(table, tableEntries(session, base), []);
    for (const address of new Set(entries)) {
      if (reached.has(address)) continue;
      const names = symbols.namesAt(address);
      // What the table says wrong is found with the table.
      if (!names.some((candidate) => SYSCALL_NAME.test(candidate))) continue;
      if (names.some((candidate) => NOT_IMPLEMENTED.test(candidate))) continue;
      findings.push({
        check: 'syscall',
        subject: `${name}, number ${entries.indexOf(address)}`,
        address: start,
        expected: `a call of ${names.at(-1)}`,
        found: 'none: that call leads elsewhere',
      });
    }
  }
  return findings;
}

/** Where calls and jumps between two addresses lead, and whatever only looks like one. */
function branchTargets(text: TextImage, start: Gva, end: Gva): Set<Gva> {
  const targets = new Set<Gva>();
  const from = Number(start - text.start);
  const to = Math.min(Number(end - text.start), text.bytes.length) - 5;
  for (let at = Math.max(0, from); at <= to; at++) {
    const opcode = text.bytes[at]!;
    const isJcc = opcode === 0x0f && (text.bytes[at + 1]! & 0xf0) === 0x80 && at + 6 <= text.bytes.length;
    if (opcode !== CALL && opcode !== JMP && !isJcc) continue;
    const size = isJcc ? 6 : 5;
    targets.add(text.start + BigInt(at + size + getS32(text.bytes, at + size - 4)));
  }
  return targets;
}
