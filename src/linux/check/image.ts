import { getS32, getU32, getU64 } from '../../abi/bytes.ts';
import { KvmiError } from '../../error.ts';
import type { Gva } from '../../machine/index.ts';
import { type Section, sectionsOf } from '../../reading/elf-file.ts';
import type { Walk } from '../../reading/walk.ts';
import type { Session } from '../session.ts';
import { readText, type TextImage } from './code.ts';
import { readTables } from './dispatch.ts';
import type { Finding } from './finding.ts';
import { symbolic } from './hooks.ts';
import { sitesOf } from './sites.ts';

/*
 * A kernel's code differs from that of its vmlinux file where it was relocated, and where it was patched for the
 * processor that it runs on. The file itself lists the latter.
 */

/** Tables of places by section: relative addresses, and how many bytes each stands for. */
const SITE_TABLES: readonly (readonly [section: RegExp, length: number])[] = [
  [/^\.retpoline_sites$/, 6],
  [/^\.return_sites$/, 5],
  [/^\.call_sites$/, 5],
  [/^\.ibt_endbr_seal$/, 4],
  [/^\.smp_locks$/, 1],
  // Constants that are known only at boot (asm/runtime-const.h).
  [/^runtime_ptr_/, 8],
  [/^runtime_shift_/, 1],
];
const MAX_FINDINGS = 256;

/** A vmlinux file of the kernel that runs. */
export interface KernelImage {
  readonly sections: readonly Section[];
  readonly text: Section & { readonly content: Buffer };
}

/** Throws a KvmiError with code E_ELF or E_VMLINUX when the file is not of the kernel that runs. */
export function kernelImage(session: Session, vmlinux: Uint8Array): KernelImage {
  const file = Buffer.from(vmlinux.buffer, vmlinux.byteOffset, vmlinux.length);
  const sections = sectionsOf(file);
  const text = sections.find(({ name }) => name === '.text');
  if (text?.content === undefined) throw wrongFile('it has no section .text');
  checkIdentity(session, file, sections);
  return { sections, text: { ...text, content: text.content } };
}

/** Compares the code that runs with that of its vmlinux file. */
export function* checkImage(session: Session, { sections, text }: KernelImage): Walk<Finding[]> {
  const file = text.content;
  const moved = session.kernel.imageStart - text.address;
  const now = yield* readText(session);
  const allowed = new Uint8Array(now.bytes.length);
  markListed(session, sections, moved, now, allowed);
  for (const [address, { length }] of (yield* sitesOf(session)).at) mark(now, allowed, address, length);
  const original = { file, start: Number(now.start - moved - text.address), moved };
  return [
    ...differences(session, original, now, allowed),
    ...(yield* changedCalls(session, sections, moved)),
  ];
}

/** Entries of the tables of system calls that are not those of the file. */
function* changedCalls(session: Session, sections: readonly Section[], moved: bigint): Walk<Finding[]> {
  const findings: Finding[] = [];
  for (const { name, start, bytes } of yield* readTables(session)) {
    const address = start - moved;
    const home = sections.find(
      (section) => section.content && address >= section.address && address < endOf(section),
    );
    // The table of interrupts is filled at boot.
    if (home?.content === undefined || name === 'idt_table') continue;
    const offset = Number(address - home.address);
    for (let at = 0; at + 8 <= bytes.length && offset + at + 8 <= home.content.length; at += 8) {
      const original = getU64(home.content, offset + at);
      const [expected, found] = [original === 0n ? 0n : original + moved, getU64(bytes, at)];
      if (expected === found) continue;
      findings.push({
        check: 'syscall',
        subject: `${name}[${at / 8}]`,
        address: start + BigInt(at),
        expected: symbolic(session, expected),
        found: symbolic(session, found),
      });
    }
  }
  return findings;
}

function endOf({ address, content }: Section): bigint {
  return address + BigInt(content?.length ?? 0);
}

function wrongFile(why: string): KvmiError {
  return new KvmiError('E_VMLINUX', `the vmlinux file does not fit: ${why}`, {
    hint: 'Give the vmlinux, vmlinuz or Debian package of exactly the kernel that runs in the guest.',
  });
}

/** By the build id; before Linux 5.9, where the guest does not tell it, by the banner. */
function checkIdentity(session: Session, file: Buffer, sections: readonly Section[]): void {
  const { buildId, banner } = session.kernel;
  const notes = sections.find(({ name }) => name === '.notes')?.content;
  if (buildId === undefined || notes === undefined) {
    if (!file.includes(banner, 0, 'latin1')) throw wrongFile(`the guest runs ${banner}`);
  } else if (!notes.includes(Buffer.from(buildId, 'hex'))) {
    throw wrongFile(`the guest's build id is ${buildId}`);
  }
}

function mark(text: TextImage, allowed: Uint8Array, address: Gva, length: number): void {
  const at = Number(address - text.start);
  if (at >= 0 && at < allowed.length) allowed.fill(1, at, at + length);
}

/** What the kernel patched once, at boot. */
function markListed(
  session: Session,
  sections: readonly Section[],
  moved: bigint,
  text: TextImage,
  allowed: Uint8Array,
): void {
  for (const { name, address, content } of sections) {
    const length = SITE_TABLES.find(([pattern]) => pattern.test(name))?.[1];
    if (length === undefined || content === undefined) continue;
    for (let at = 0; at + 4 <= content.length; at += 4)
      mark(text, allowed, address + moved + BigInt(at + getS32(content, at)), length);
  }
  markStructures(session, 'alternative', sections, moved, text, allowed);
  markStructures(session, 'paravirtSite', sections, moved, text, allowed);
}

const STRUCTURE_SECTIONS = { alternative: '.altinstructions', paravirtSite: '.parainstructions' } as const;

/** Tables whose entries say how long a place is; addresses in them are relative to themselves or absolute. */
function markStructures(
  session: Session,
  kind: keyof typeof STRUCTURE_SECTIONS,
  sections: readonly Section[],
  moved: bigint,
  text: TextImage,
  allowed: Uint8Array,
): void {
  const { size, fields, span } = session.kernel.layouts.get<'alternative' | 'paravirtSite'>(kind);
  const table = sections.find(({ name }) => name === STRUCTURE_SECTIONS[kind]);
  const { instruction, length } = fields;
  if (table?.content === undefined || instruction === undefined || length === undefined) return;
  // The last entry of a table has no padding.
  for (let at = 0; at + span.end <= table.content.length; at += size) {
    const field = at + instruction.offset;
    const site =
      instruction.size === 8
        ? getU64(table.content, field)
        : table.address + BigInt(field + getS32(table.content, field));
    mark(text, allowed, site + moved, table.content[at + length.offset]!);
  }
}

interface Original {
  readonly file: Uint8Array;
  /** Where in `file` the running text starts. */
  readonly start: number;
  readonly moved: bigint;
}

function differences(session: Session, original: Original, now: TextImage, allowed: Uint8Array): Finding[] {
  const { file, start } = original;
  const findings: Finding[] = [];
  const size = Math.min(now.bytes.length, file.length - start);
  for (let at = 0; at < size; at++) {
    if (now.bytes[at] === file[start + at] || allowed[at] === 1) continue;
    const relocated = relocationEnd(original, now.bytes, at);
    if (relocated > at) {
      at = relocated - 1;
      continue;
    }
    let stop = at + 1;
    while (stop < size && stop - at < 16 && now.bytes[stop] !== file[start + stop]) stop++;
    findings.push({
      check: 'text',
      subject: symbolic(session, now.start + BigInt(at)),
      address: now.start + BigInt(at),
      expected: Buffer.from(file.subarray(start + at, start + stop)).toString('hex'),
      found: Buffer.from(now.bytes.subarray(at, stop)).toString('hex'),
    });
    at = stop;
    if (findings.length >= MAX_FINDINGS) {
      session.note(`findings about text cut at ${MAX_FINDINGS}`);
      break;
    }
  }
  return findings;
}

/**
 * Where the relocated number that the difference at `at` belongs to ends; `at` when there is none. Absolute addresses
 * grow by as much as the kernel was moved; distances to per-CPU variables, which stay, shrink by it.
 */
function relocationEnd({ file, start, moved }: Original, now: Uint8Array, at: number): number {
  const by = Number(BigInt.asUintN(32, moved));
  for (let first = at; first > at - 8 && first >= 0; first--) {
    if (first + 4 > at) {
      const difference = (getU32(now, first) - getU32(file, start + first)) >>> 0;
      if (difference === by || difference === -by >>> 0) return first + 4;
    }
    if (first + 8 <= now.length && getU64(now, first) - getU64(file, start + first) === moved)
      return first + 8;
  }
  return at;
}
