import { STATE_SIZE } from '../../abi/state.ts';
import { EVENT_MSRS } from '../../abi/x86.ts';
import {
  type DumpContents,
  type DumpedState,
  damaged,
  MAX_SEGMENTS,
  memoryIn,
  type Segment,
} from './contents.ts';
import { ELF_CORE } from './elf-format.ts';
import { readPart, type Source } from './file.ts';
import { stateOfNote } from './vcpu-notes.ts';

/*
 * ELF core files: a PT_LOAD for each run of guest memory, by its physical address, and notes. QEMU's
 * dump-guest-memory writes them, and /proc/vmcore is one.
 */

/** Bytes of notes in a whole file, and their number. */
const MAX_NOTES_SIZE = 64 << 20;
const MAX_NOTES = 65_536;

export function readElf(source: Source): DumpContents {
  const programs = readPrograms(source);
  const segments: Segment[] = [];
  const notes: Note[] = [];
  let notesLeft = MAX_NOTES_SIZE;
  for (let at = 0; at < programs.length; at += ELF_CORE.program) {
    const type = programs.readUInt32LE(at);
    const offset = Number(programs.readBigUInt64LE(at + 8));
    const fileSize = Number(programs.readBigUInt64LE(at + 32));
    if (type === ELF_CORE.note && notesLeft > 0) {
      for (const note of readNotes(source, offset, Math.min(fileSize, notesLeft))) notes.push(note);
      notesLeft -= fileSize;
    }
    if (type !== ELF_CORE.load) continue;
    segments.push({
      gpa: Number(programs.readBigUInt64LE(at + 24)),
      size: Number(programs.readBigUInt64LE(at + 40)),
      offset,
      fileSize,
    });
  }
  return {
    format: 'elf',
    ...memoryIn(source, segments),
    states: statesOf(notes),
    vmcoreinfo: vmcoreinfoOf(notes),
  };
}

function readPrograms(source: Source): Buffer {
  const header = readPart(source, 0, ELF_CORE.header);
  if (header === undefined) throw damaged('the ELF header is cut off');
  if (header.readUInt16LE(18) !== ELF_CORE.machine)
    throw damaged('it is an ELF file of another architecture');
  if (header.readUInt16LE(16) !== ELF_CORE.type) throw damaged('it is an ELF file, but no core file');
  const count = programCount(source, header);
  if (header.readUInt16LE(54) !== ELF_CORE.program || count > MAX_SEGMENTS)
    throw damaged(`${count} program headers`);
  const size = count * ELF_CORE.program;
  const programs = readPart(source, Number(header.readBigUInt64LE(32)), size, size);
  if (programs === undefined) throw damaged('the program headers are cut off');
  return programs;
}

function programCount(source: Source, header: Buffer): number {
  const count = header.readUInt16LE(56);
  if (count !== ELF_CORE.manyPrograms) return count;
  const section = readPart(source, Number(header.readBigUInt64LE(40)), 64);
  if (section === undefined) throw damaged('the section header with the number of segments is cut off');
  return section.readUInt32LE(44);
}

export interface Note {
  readonly name: string;
  readonly type: number;
  readonly content: Buffer;
}

/** The notes of one segment, as far as they are whole. */
export function readNotes(source: Source, offset: number, size: number): Note[] {
  const bytes = readPart(source, offset, Math.min(size, MAX_NOTES_SIZE), MAX_NOTES_SIZE);
  return bytes === undefined ? [] : parseNotes(bytes);
}

function parseNotes(bytes: Buffer): Note[] {
  const notes: Note[] = [];
  for (let at = 0; at + 12 <= bytes.length && notes.length < MAX_NOTES; ) {
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

/** A machine with more vCPUs is not believed. */
const MAX_VCPUS = 4096;

const ALL_MSRS: ReadonlySet<number> = new Set(Object.values(EVENT_MSRS));
/** EFER follows from the control registers. */
const MSRS_OF_QEMU: ReadonlySet<number> = new Set([EVENT_MSRS.efer, EVENT_MSRS.shadow_gs]);

/** Our own notes hold all of the state; QEMU's hold most of it. */
export function statesOf(notes: readonly Note[]): DumpedState[] {
  const own = notes.filter((note) => note.name === 'KVMI' && note.content.length === STATE_SIZE);
  if (own.length > 0)
    return own.slice(0, MAX_VCPUS).map((note) => ({ bytes: Uint8Array.from(note.content), msrs: ALL_MSRS }));
  return notes
    .filter((note) => note.name === 'QEMU')
    .slice(0, MAX_VCPUS)
    .map((note) => stateOfNote(note.content))
    .filter((bytes) => bytes !== undefined)
    .map((bytes) => ({ bytes, msrs: MSRS_OF_QEMU }));
}

/** It is a page of text; more is not believed. */
const MAX_VMCOREINFO = 1 << 16;

export function vmcoreinfoOf(notes: readonly Note[]): string | undefined {
  const note = notes.find(({ name }) => name === 'VMCOREINFO');
  return note?.content.toString('latin1', 0, MAX_VMCOREINFO).replace(/\0+$/, '');
}
