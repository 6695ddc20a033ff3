import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';

/** A section of an ELF file. */
export interface Section {
  readonly name: string;
  readonly address: Gva;
  readonly flags: number;
  /** Undefined for sections without contents (SHT_NOBITS), and for those that lie outside the file. */
  readonly content: Buffer | undefined;
}

const HEADER = 64;
const SECTION = 64;
const SHT_NOBITS = 8;
const MAX_SECTIONS = 65_536;

/** The sections of a 64-bit little-endian ELF file: a vmlinux. Throws a KvmiError with code E_ELF when it is none. */
export function sectionsOf(file: Buffer): Section[] {
  const isElf = file.length >= HEADER && file.toString('latin1', 0, 6) === '\x7fELF\x02\x01';
  if (!isElf) throw invalid('it is no 64-bit little-endian ELF file');
  const table = Number(file.readBigUInt64LE(40));
  const count = Math.min(file.readUInt16LE(60), MAX_SECTIONS);
  if (file.readUInt16LE(58) !== SECTION || table + count * SECTION > file.length)
    throw invalid('its section headers are cut off');
  const headers = Array.from({ length: count }, (_, i) => table + i * SECTION);
  const names = contentOf(file, headers[file.readUInt16LE(62)]) ?? Buffer.alloc(0);
  return headers.map((at) => ({
    name: cString(names, file.readUInt32LE(at)),
    address: file.readBigUInt64LE(at + 16),
    flags: Number(file.readBigUInt64LE(at + 8) & 0xffffffffn),
    content: contentOf(file, at),
  }));
}

function contentOf(file: Buffer, header: number | undefined): Buffer | undefined {
  if (header === undefined || file.readUInt32LE(header + 4) === SHT_NOBITS) return undefined;
  const offset = Number(file.readBigUInt64LE(header + 24));
  const size = Number(file.readBigUInt64LE(header + 32));
  return offset + size <= file.length ? file.subarray(offset, offset + size) : undefined;
}

function cString(bytes: Buffer, at: number): string {
  const end = bytes.indexOf(0, at);
  return at < bytes.length ? bytes.toString('latin1', at, end < 0 ? bytes.length : end) : '';
}

function invalid(why: string): KvmiError {
  return new KvmiError('E_ELF', `the vmlinux file cannot be read: ${why}`, {
    hint: 'Give the vmlinux, vmlinuz or Debian package of exactly this kernel.',
  });
}
