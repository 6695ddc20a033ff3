import { STATE_SIZE } from '../../abi/state.ts';
import { type DumpContents, damaged, MAX_SEGMENTS, regionsOf, type Segment } from './contents.ts';
import { readPart, type Source } from './file.ts';
import { noteOfState, stateOfNote } from './vcpu-notes.ts';

/*
 * ELF core files: a PT_LOAD for each run of guest memory, by its physical address, and notes. QEMU's
 * dump-guest-memory writes them, and /proc/vmcore is one.
 */

export const ELF_MAGIC = Buffer.from('\x7fELF\x02\x01', 'latin1');
const HEADER = 64;
const PROGRAM = 56;
const PT_LOAD = 1;
const PT_NOTE = 4;
const ET_CORE = 4;
const EM_X86_64 = 62;
/** With this many program headers or more, their number is in the first section header. */
const PN_XNUM = 0xffff;
const MAX_NOTES = 64 << 20;

export function readElf(source: Source): DumpContents {
  const header = readPart(source, 0, HEADER);
  if (header === undefined) throw damaged('the ELF header is cut off');
  if (header.readUInt16LE(18) !== EM_X86_64) throw damaged('it is an ELF file of another architecture');
  const table = Number(header.readBigUInt64LE(32));
  const count = programCount(source, header);
  if (header.readUInt16LE(54) !== PROGRAM || count > MAX_SEGMENTS) throw damaged(`${count} program headers`);
  const programs = readPart(source, table, count * PROGRAM, MAX_SEGMENTS * PROGRAM);
  if (programs === undefined) throw damaged('the program headers are cut off');
  const segments: Segment[] = [];
  const notes: Note[] = [];
  for (let at = 0; at < programs.length; at += PROGRAM) {
    const type = programs.readUInt32LE(at);
    const offset = Number(programs.readBigUInt64LE(at + 8));
    const fileSize = Number(programs.readBigUInt64LE(at + 32));
    if (type === PT_NOTE) notes.push(...readNotes(source, offset, fileSize));
    if (type !== PT_LOAD) continue;
    const inFile = Math.max(0, Math.min(fileSize, source.size - offset));
    segments.push({
      gpa: Number(programs.readBigUInt64LE(at + 24)),
      size: Number(programs.readBigUInt64LE(at + 40)),
      offset,
      fileSize: inFile,
    });
  }
  return {
    format: 'elf',
    regions: regionsOf(source, segments),
    states: statesOf(notes),
    vmcoreinfo: vmcoreinfoOf(notes),
  };
}

function programCount(source: Source, header: Buffer): number {
  const count = header.readUInt16LE(56);
  if (count !== PN_XNUM) return count;
  const section = readPart(source, Number(header.readBigUInt64LE(40)), 64);
  if (section === undefined) throw damaged('the section header with the number of segments is cut off');
  return section.readUInt32LE(44);
}

export interface Note {
  readonly name: string;
  readonly type: number;
  readonly content: Buffer;
}

const align4 = (size: number) => (size + 3) & ~3;

/** The notes of one segment, as far as they are whole. */
export function readNotes(source: Source, offset: number, size: number): Note[] {
  const bytes = readPart(source, offset, Math.min(size, MAX_NOTES), MAX_NOTES);
  return bytes === undefined ? [] : parseNotes(bytes);
}

export function parseNotes(bytes: Buffer): Note[] {
  const notes: Note[] = [];
  for (let at = 0; at + 12 <= bytes.length; ) {
    const nameSize = bytes.readUInt32LE(at);
    const size = bytes.readUInt32LE(at + 4);
    const start = at + 12 + nameSize + ((4 - (nameSize & 3)) & 3);
    if (nameSize > 256 || start + size > bytes.length) break;
    notes.push({
      name: bytes.toString('latin1', at + 12, at + 12 + Math.max(0, nameSize - 1)),
      type: bytes.readUInt32LE(at + 8),
      content: bytes.subarray(start, start + size),
    });
    at = start + size + ((4 - (size & 3)) & 3);
  }
  return notes;
}

/** Our own notes hold all of the state; QEMU's hold most of it. */
export function statesOf(notes: readonly Note[]): Uint8Array[] {
  const own = notes.filter((note) => note.name === 'KVMI' && note.content.length === STATE_SIZE);
  if (own.length > 0) return own.map((note) => Uint8Array.from(note.content));
  return notes
    .filter((note) => note.name === 'QEMU')
    .map((note) => stateOfNote(note.content))
    .filter((state) => state !== undefined);
}

export function vmcoreinfoOf(notes: readonly Note[]): string | undefined {
  const note = notes.find(({ name }) => name === 'VMCOREINFO');
  return note?.content.toString('latin1').replace(/\0+$/, '');
}

function noteBytes({ name, type, content }: { name: string; type: number; content: Uint8Array }): Buffer {
  const bytes = Buffer.alloc(12 + align4(name.length + 1) + align4(content.length));
  bytes.writeUInt32LE(name.length + 1, 0);
  bytes.writeUInt32LE(content.length, 4);
  bytes.writeUInt32LE(type, 8);
  bytes.write(name, 12, 'latin1');
  bytes.set(content, 12 + align4(name.length + 1));
  return bytes;
}

const PAGE = 4096;

/** Headers and notes of a core file, padded to whole pages, and where the memory of each run goes. */
export function elfHeader(
  runs: readonly { readonly gpa: number; readonly size: number }[],
  states: readonly Uint8Array[],
): { readonly header: Buffer; readonly offsets: readonly number[] } {
  const notes = Buffer.concat(
    states.flatMap((state) => [
      noteBytes({ name: 'QEMU', type: 0, content: noteOfState(state) }),
      noteBytes({ name: 'KVMI', type: 1, content: state }),
    ]),
  );
  const programs = runs.length + 1;
  const notesAt = HEADER + programs * PROGRAM;
  const header = Buffer.alloc(Math.ceil((notesAt + notes.length) / PAGE) * PAGE);
  ELF_MAGIC.copy(header);
  header[6] = 1;
  header.writeUInt16LE(ET_CORE, 16);
  header.writeUInt16LE(EM_X86_64, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(HEADER), 32);
  header.writeUInt16LE(HEADER, 52);
  header.writeUInt16LE(PROGRAM, 54);
  header.writeUInt16LE(programs, 56);
  writeProgram(header, HEADER, PT_NOTE, { gpa: 0, size: notes.length, offset: notesAt });
  header.set(notes, notesAt);
  const offsets: number[] = [];
  let offset = header.length;
  runs.forEach((run, i) => {
    writeProgram(header, HEADER + (i + 1) * PROGRAM, PT_LOAD, { ...run, offset });
    offsets.push(offset);
    offset += run.size;
  });
  return { header, offsets };
}

function writeProgram(
  header: Buffer,
  at: number,
  type: number,
  { gpa, size, offset }: { gpa: number; size: number; offset: number },
): void {
  header.writeUInt32LE(type, at);
  header.writeUInt32LE(4, at + 4);
  header.writeBigUInt64LE(BigInt(offset), at + 8);
  header.writeBigUInt64LE(0n, at + 16);
  header.writeBigUInt64LE(BigInt(gpa), at + 24);
  header.writeBigUInt64LE(BigInt(size), at + 32);
  header.writeBigUInt64LE(BigInt(size), at + 40);
}
