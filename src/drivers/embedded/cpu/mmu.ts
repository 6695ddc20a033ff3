import { VECTOR } from '../../../abi/x86.ts';
import { ACCESS } from '../../../machine/index.ts';
import { UNBACKED } from '../memory.ts';
import type { Cpu } from './cpu.ts';
import { walk } from './paging.ts';
import { raise } from './raise.ts';
import { RESTART, STOP } from './signals.ts';
import { CODE_BASE } from './slots.ts';
import { TLB_MASK, TLB_SHIFT } from './tlb.ts';
import { isCanonical } from './wide.ts';

/*
 * Memory as instructions see it, by linear address in halves. Every function here may throw FAULT (the guest gets
 * an exception) or STOP (a page trap denies the access); nothing has happened then.
 *
 * The fast way is a hit in the TLB of the current privilege level. Everything else (a miss, an operand that crosses
 * a page, a trapped page, a write to decoded code) goes through `resolve`, page by page.
 */

/**
 * The offset in the backing store of the page that `lo`/`hi` is in, or UNBACKED, after all checks for an access to
 * `size` bytes that do not leave the page.
 */
export function resolve(c: Cpu, lo: number, hi: number, access: number, user: boolean, size: number): number {
  if (!isCanonical(hi)) raise(c, VECTOR.GP, 0);
  const gfn = walk(c, lo, hi, access, user);
  const { view } = c;
  const allowed = view.accessOf(gfn);
  c.allowed = allowed;
  const denied = access & ~allowed;
  if (denied !== 0 && (denied & ~c.granted(gfn)) !== 0) {
    const subPage = denied === ACCESS.write && view.allowsWrite(gfn, lo & 0xfff, size);
    if (!subPage) {
      pageStop(c, lo, hi, gfn, denied & ~c.granted(gfn));
      c.allowed = allowed;
    }
  }
  const frame = view.frameOf(gfn);
  if ((allowed & ACCESS.read) !== 0) {
    const tlb = user ? c.userTlb : c.kernelTlb;
    tlb.addRead(lo, hi, frame === UNBACKED ? c.memory.unbacked : frame);
    if ((access & allowed & ACCESS.write) !== 0 && frame !== UNBACKED && !c.code.hasCode(frame)) {
      tlb.addWrite(lo, hi, frame);
    }
  }
  return frame;
}

/** Reports an access that a page trap denies. Returns when it may go on all the same. */
function pageStop(c: Cpu, lo: number, hi: number, gfn: number, access: number): void {
  const stop = c.stops.page;
  stop.gvaLo = lo;
  stop.gvaHi = hi;
  stop.gpa = gfn * 4096 + (lo & 0xfff);
  stop.access = access;
  stop.view = c.view.number;
  c.stop = stop;
  if (c.onPageStop === undefined) throw STOP;
  const { hi: result, eaLo, eaHi } = c;
  exactRip(c);
  if (!c.onPageStop()) throw RESTART;
  c.cut();
  c.hi = result;
  c.eaLo = eaLo;
  c.eaHi = eaHi;
}

/** Makes rip that of the instruction that runs, as a stop shows it. Instructions set it after their accesses. */
export function exactRip(c: Cpu): void {
  c.stopLength = 0;
  if (c.position >= 0) {
    const op = c.block!.ops[c.position]!;
    const base = c.r[CODE_BASE]!;
    c.ripLo = (base + op.start) | 0;
    c.ripHi = c.r[CODE_BASE + 1]!;
    c.stopLength = op.next - op.start;
  }
  c.stopLo = c.ripLo;
  c.stopHi = c.ripHi;
}

/** Reads up to 32 bytes into c.bounce, checked for `access` (a read, or a read and a write). */
function gather(c: Cpu, lo: number, hi: number, size: number, access: number, user: boolean): void {
  const first = Math.min(size, 4096 - (lo & 0xfff));
  const frame = resolve(c, lo, hi, access, user, first);
  let second = 0;
  if (first < size) {
    const next = (lo + first) | 0;
    second = resolve(c, next, next === 0 ? (hi + 1) | 0 : hi, access, user, size - first);
  }
  for (let i = 0; i < size; i++) {
    const at = i < first ? piece(frame, (lo & 0xfff) + i) : piece(second, i - first);
    c.bounce.setUint8(i, at === UNBACKED ? 0xff : c.ram.getUint8(at));
  }
  if (c.substitute !== undefined) substitute(c, lo, hi, size);
}

function piece(frame: number, offset: number): number {
  return frame === UNBACKED ? UNBACKED : frame + offset;
}

/** Writes the first `size` bytes of c.bounce. */
function scatter(c: Cpu, lo: number, hi: number, size: number, user: boolean): void {
  const first = Math.min(size, 4096 - (lo & 0xfff));
  const frame = resolve(c, lo, hi, ACCESS.write, user, first);
  let second = UNBACKED;
  if (first < size) {
    const next = (lo + first) | 0;
    second = resolve(c, next, next === 0 ? (hi + 1) | 0 : hi, ACCESS.write, user, size - first);
  }
  for (let i = 0; i < size; i++) {
    const at = i < first ? piece(frame, (lo & 0xfff) + i) : piece(second, i - first);
    if (at !== UNBACKED) c.ram.setUint8(at, c.bounce.getUint8(i));
  }
  if (frame !== UNBACKED) c.memory.wrote(frame + (lo & 0xfff), first);
  if (second !== UNBACKED) c.memory.wrote(second, size - first);
}

/** Lays the bytes that an answer gave over what was read. */
function substitute(c: Cpu, lo: number, hi: number, size: number): void {
  const { gva, bytes } = c.substitute!;
  const start = BigInt.asIntN(
    64,
    BigInt.asUintN(64, (BigInt(hi) << 32n) | BigInt(lo >>> 0)) - BigInt.asUintN(64, gva),
  );
  if (start <= -BigInt(size) || start >= BigInt(bytes.length)) return;
  const offset = Number(start);
  for (let i = 0; i < size; i++) {
    const byte = bytes[offset + i];
    if (byte !== undefined) c.bounce.setUint8(i, byte);
  }
}

export function read8(c: Cpu, lo: number, hi: number): number {
  const t = c.readTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi) return c.ram.getUint8(t[e + 2]! + (lo & 0xfff));
  gather(c, lo, hi, 1, ACCESS.read, c.cpl === 3);
  return c.bounce.getUint8(0);
}

export function read16(c: Cpu, lo: number, hi: number): number {
  const t = c.readTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4094) {
    return c.ram.getUint16(t[e + 2]! + offset, true);
  }
  gather(c, lo, hi, 2, ACCESS.read, c.cpl === 3);
  return c.bounce.getUint16(0, true);
}

export function read32(c: Cpu, lo: number, hi: number): number {
  const t = c.readTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4092) {
    return c.ram.getInt32(t[e + 2]! + offset, true);
  }
  gather(c, lo, hi, 4, ACCESS.read, c.cpl === 3);
  return c.bounce.getInt32(0, true);
}

/** Low half; the high half is in c.hi. */
export function read64(c: Cpu, lo: number, hi: number): number {
  const t = c.readTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4088) {
    const at = t[e + 2]! + offset;
    c.hi = c.ram.getInt32(at + 4, true);
    return c.ram.getInt32(at, true);
  }
  gather(c, lo, hi, 8, ACCESS.read, c.cpl === 3);
  c.hi = c.bounce.getInt32(4, true);
  return c.bounce.getInt32(0, true);
}

/** Reads 16 bytes into c.bounce. */
export function read128(c: Cpu, lo: number, hi: number): void {
  gather(c, lo, hi, 16, ACCESS.read, c.cpl === 3);
}

export function write8(c: Cpu, lo: number, hi: number, value: number): void {
  const t = c.writeTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi) {
    c.ram.setUint8(t[e + 2]! + (lo & 0xfff), value);
    return;
  }
  c.bounce.setUint8(0, value);
  scatter(c, lo, hi, 1, c.cpl === 3);
}

export function write16(c: Cpu, lo: number, hi: number, value: number): void {
  const t = c.writeTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4094) {
    c.ram.setUint16(t[e + 2]! + offset, value, true);
    return;
  }
  c.bounce.setUint16(0, value, true);
  scatter(c, lo, hi, 2, c.cpl === 3);
}

export function write32(c: Cpu, lo: number, hi: number, value: number): void {
  const t = c.writeTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4092) {
    c.ram.setInt32(t[e + 2]! + offset, value, true);
    return;
  }
  c.bounce.setInt32(0, value, true);
  scatter(c, lo, hi, 4, c.cpl === 3);
}

export function write64(c: Cpu, lo: number, hi: number, low: number, high: number): void {
  const t = c.writeTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === hi && offset <= 4088) {
    const at = t[e + 2]! + offset;
    c.ram.setInt32(at, low, true);
    c.ram.setInt32(at + 4, high, true);
    return;
  }
  c.bounce.setInt32(0, low, true);
  c.bounce.setInt32(4, high, true);
  scatter(c, lo, hi, 8, c.cpl === 3);
}

/** Writes the first 16 bytes of c.bounce. */
export function write128(c: Cpu, lo: number, hi: number): void {
  scatter(c, lo, hi, 16, c.cpl === 3);
}

/*
 * Read-modify-write: modify… reads an operand after checking that it can be written, store… writes it back. Between
 * the two nothing can fail, so an instruction may set flags there. The address is c.eaLo/c.eaHi.
 */

/** Finds the operand at the effective address; true when c.modifyAt is its place in the backing store. */
function modify(c: Cpu, size: number): boolean {
  const lo = c.eaLo;
  const t = c.writeTlb;
  const e = (lo >>> TLB_SHIFT) & TLB_MASK;
  const offset = lo & 0xfff;
  if (t[e] === (lo & ~0xfff) && t[e + 1] === c.eaHi && offset <= 4096 - size) {
    c.modifyAt = t[e + 2]! + offset;
    return true;
  }
  c.modifyAt = -1;
  gather(c, lo, c.eaHi, size, ACCESS.read | ACCESS.write, c.cpl === 3);
  return false;
}

export function modify8(c: Cpu): number {
  return modify(c, 1) ? c.ram.getUint8(c.modifyAt) : c.bounce.getUint8(0);
}

export function modify16(c: Cpu): number {
  return modify(c, 2) ? c.ram.getUint16(c.modifyAt, true) : c.bounce.getUint16(0, true);
}

export function modify32(c: Cpu): number {
  return modify(c, 4) ? c.ram.getInt32(c.modifyAt, true) : c.bounce.getInt32(0, true);
}

export function modify64(c: Cpu): number {
  if (modify(c, 8)) {
    c.hi = c.ram.getInt32(c.modifyAt + 4, true);
    return c.ram.getInt32(c.modifyAt, true);
  }
  c.hi = c.bounce.getInt32(4, true);
  return c.bounce.getInt32(0, true);
}

export function store8(c: Cpu, value: number): void {
  if (c.modifyAt >= 0) c.ram.setUint8(c.modifyAt, value);
  else write8(c, c.eaLo, c.eaHi, value);
}

export function store16(c: Cpu, value: number): void {
  if (c.modifyAt >= 0) c.ram.setUint16(c.modifyAt, value, true);
  else write16(c, c.eaLo, c.eaHi, value);
}

export function store32(c: Cpu, value: number): void {
  if (c.modifyAt >= 0) c.ram.setInt32(c.modifyAt, value, true);
  else write32(c, c.eaLo, c.eaHi, value);
}

export function store64(c: Cpu, low: number, high: number): void {
  if (c.modifyAt >= 0) {
    c.ram.setInt32(c.modifyAt, low, true);
    c.ram.setInt32(c.modifyAt + 4, high, true);
  } else write64(c, c.eaLo, c.eaHi, low, high);
}

/*
 * Accesses that the processor makes on its own behalf: descriptor tables, the TSS, the stack of a handler.
 */

export function readSystem32(c: Cpu, lo: number, hi: number): number {
  gather(c, lo, hi, 4, ACCESS.read, false);
  return c.bounce.getInt32(0, true);
}

export function readSystem64(c: Cpu, lo: number, hi: number): number {
  gather(c, lo, hi, 8, ACCESS.read, false);
  c.hi = c.bounce.getInt32(4, true);
  return c.bounce.getInt32(0, true);
}

export function writeSystem32(c: Cpu, lo: number, hi: number, value: number): void {
  c.bounce.setInt32(0, value, true);
  scatter(c, lo, hi, 4, false);
}

/** Writes 8 bytes as the given privilege, whatever the current one is. */
export function writeAs(c: Cpu, user: boolean, lo: number, hi: number, low: number, high: number): void {
  c.bounce.setInt32(0, low, true);
  c.bounce.setInt32(4, high, true);
  scatter(c, lo, hi, 8, user);
}
