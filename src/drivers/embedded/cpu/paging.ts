import { ACCESS } from '../../../machine/index.ts';
import { UNBACKED } from '../memory.ts';
import { CR0, CR4, EFER, ENTRY_RESERVED_HIGH } from './constants.ts';
import type { Cpu } from './cpu.ts';
import { pageFault } from './raise.ts';

/** Low bits of a page-table entry. */
const ENTRY = { present: 1, write: 2, user: 4, accessed: 32, dirty: 64, large: 128 } as const;
const NX_HIGH = 1 << 31;
/** Bits of a page-fault error code. */
const PF = { present: 1, write: 2, user: 4, reserved: 8, fetch: 16 } as const;
/** Bits of the high half that belong to the physical address. */
const ADDRESS_HIGH = 0xff;

/** 28 bits of frame number, from the 40 physical address bits of an entry. */
function gfnOf(lo: number, hi: number): number {
  return (lo >>> 12) | ((hi & ADDRESS_HIGH) << 20);
}

/** Index into the table of `level` (3 is the PML4) for a linear address. */
function tableIndex(lo: number, hi: number, level: number): number {
  if (level === 0) return (lo >>> 12) & 511;
  if (level === 1) return (lo >>> 21) & 511;
  if (level === 2) return ((lo >>> 30) | (hi << 2)) & 511;
  return (hi >>> 7) & 511;
}

/**
 * The frame number that a linear address translates to for an access, setting accessed and dirty bits as the
 * processor does. The tables themselves are read and written whatever page traps say. Throws #PF.
 */
export function walk(c: Cpu, lo: number, hi: number, access: number, user: boolean): number {
  if ((c.cr0 & CR0.PG) === 0) return lo >>> 12;
  const { ram, view } = c;
  const write = (access & ACCESS.write) !== 0;
  const fetch = (access & ACCESS.execute) !== 0;
  const nx = (c.efer & EFER.NXE) !== 0;
  const cause =
    (write ? PF.write : 0) | (user ? PF.user : 0) | (fetch && (nx || c.cr4 & CR4.SMEP) ? PF.fetch : 0);
  let writable = true;
  let userPage = true;
  let executable = true;
  let gfn = gfnOf(c.cr3Lo, c.cr3Hi);
  for (let level = 3; ; level--) {
    const table = view.frameOf(gfn);
    if (table === UNBACKED) pageFault(c, lo, hi, cause | PF.present | PF.reserved);
    const at = table + tableIndex(lo, hi, level) * 8;
    const low = ram.getInt32(at, true);
    const high = ram.getInt32(at + 4, true);
    if ((low & ENTRY.present) === 0) pageFault(c, lo, hi, cause);
    if ((high & ENTRY_RESERVED_HIGH) !== 0 || (!nx && high < 0)) {
      pageFault(c, lo, hi, cause | PF.present | PF.reserved);
    }
    writable = writable && (low & ENTRY.write) !== 0;
    userPage = userPage && (low & ENTRY.user) !== 0;
    executable = executable && (high & NX_HIGH) === 0;
    const leaf = level === 0 || (low & ENTRY.large) !== 0;
    if (!leaf) {
      if ((low & ENTRY.accessed) === 0) setEntry(c, at, low | ENTRY.accessed);
      gfn = gfnOf(low, high);
      continue;
    }
    const inPage = level === 0 ? 0 : level === 1 ? 0x1ff : 0x3ffff;
    // A large page has reserved bits below its address, but for the PAT bit; a PML4 entry is never a page.
    if (level === 3 || (low & (inPage << 12) & ~0x1000) !== 0) {
      pageFault(c, lo, hi, cause | PF.present | PF.reserved);
    }
    const denied =
      (user && !userPage) ||
      (write && !writable && (user || (c.cr0 & CR0.WP) !== 0)) ||
      (fetch && (!executable || (!user && userPage && (c.cr4 & CR4.SMEP) !== 0)));
    if (denied) pageFault(c, lo, hi, cause | PF.present);
    const marks = ENTRY.accessed | (write ? ENTRY.dirty : 0);
    if ((low & marks) !== marks) setEntry(c, at, low | marks);
    return (gfnOf(low, high) & ~inPage) | ((lo >>> 12) & inPage);
  }
}

function setEntry(c: Cpu, at: number, low: number): void {
  c.ram.setInt32(at, low, true);
  c.memory.wrote(at, 4);
}

/** Translates without side effects, as the kernel's own read; -1 when there is no translation. */
export function translate(c: Cpu, lo: number, hi: number): number {
  if ((c.cr0 & CR0.PG) === 0) return lo >>> 0;
  let gfn = gfnOf(c.cr3Lo, c.cr3Hi);
  for (let level = 3; level >= 0; level--) {
    const table = c.view.frameOf(gfn);
    if (table === UNBACKED) return -1;
    const at = table + tableIndex(lo, hi, level) * 8;
    const low = c.ram.getInt32(at, true);
    const high = c.ram.getInt32(at + 4, true);
    if ((low & ENTRY.present) === 0) return -1;
    if (level > 0 && (low & ENTRY.large) === 0) {
      gfn = gfnOf(low, high);
      continue;
    }
    if (level === 3) return -1;
    const inPage = level === 0 ? 0 : level === 1 ? 0x1ff : 0x3ffff;
    return ((gfnOf(low, high) & ~inPage) | ((lo >>> 12) & inPage)) * 4096 + (lo & 0xfff);
  }
  return -1;
}
