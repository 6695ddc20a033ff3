import { PAGE_SIZE } from '../../machine/index.ts';
import { ELF_CORE, ELF_MAGIC } from './elf-format.ts';
import { type Alias, kernelImage } from './kernel-image.ts';
import { noteOfState, prstatusOfState } from './vcpu-notes.ts';

const align4 = (size: number) => (size + 3) & ~3;

const NT_PRSTATUS = 1;

function note(name: string, type: number, content: Uint8Array): Buffer {
  const bytes = Buffer.alloc(12 + align4(name.length + 1) + align4(content.length));
  bytes.writeUInt32LE(name.length + 1, 0);
  bytes.writeUInt32LE(content.length, 4);
  bytes.writeUInt32LE(type, 8);
  bytes.write(name, 12, 'latin1');
  bytes.set(content, 12 + align4(name.length + 1));
  return bytes;
}

/** As QEMU writes them, in its order, then our own. GDB reads the first kind, crash the first two. */
function notesOf({ states, vmcoreinfo }: DumpNotes): Buffer {
  return Buffer.concat([
    ...states.map((state, index) => note('CORE', NT_PRSTATUS, prstatusOfState(state, index + 1))),
    ...states.map((state) => note('QEMU', 0, noteOfState(state))),
    ...(vmcoreinfo === undefined ? [] : [note('VMCOREINFO', 0, Buffer.from(vmcoreinfo, 'latin1'))]),
    ...states.map((state) => note('KVMI', 1, state)),
  ]);
}

/** What an ELF dump holds besides memory. */
export interface DumpNotes {
  /** The 536-byte state of each vCPU. */
  readonly states: readonly Uint8Array[];
  /** What a Linux kernel says about itself. */
  readonly vmcoreinfo: string | undefined;
}

type Run = Pick<Program, 'gpa' | 'size'>;

/** Headers and notes of a core file, padded to whole pages, and where the memory of each run goes. */
export function elfHeader(
  runs: readonly Run[],
  from: DumpNotes,
): { readonly header: Buffer; readonly offsets: readonly number[] } {
  const notes = notesOf(from);
  const image = from.vmcoreinfo === undefined ? undefined : kernelImage(from.vmcoreinfo, runs);
  const parts = runs.map((run) => partsOf(run, image));
  const count = 1 + parts.flat().length;
  const notesAt = ELF_CORE.header + count * ELF_CORE.program;
  const start = Math.ceil((notesAt + notes.length) / PAGE_SIZE) * PAGE_SIZE;
  const header = Buffer.alloc(start);
  writeFileHeader(header, count);
  const place = { type: ELF_CORE.note, gpa: 0, size: notes.length, offset: notesAt };
  writeProgram(header, ELF_CORE.header, place);
  header.set(notes, notesAt);
  let at = ELF_CORE.header;
  let end = start;
  const offsets = parts.map((ofRun) => {
    const offset = end;
    for (const part of ofRun) {
      at += ELF_CORE.program;
      writeProgram(header, at, { ...part, type: ELF_CORE.load, offset: end });
      end += part.size;
    }
    return offset;
  });
  return { header, offsets };
}

/**
 * The segments of a run of memory: one, or three where the kernel's image, which has a virtual address, is in it. They never
 * overlap, which readers of dumps do not expect.
 */
function partsOf(run: Run, image: Alias | undefined): (Run & { readonly gva?: bigint })[] {
  const end = run.gpa + run.size;
  if (image === undefined || image.gpa < run.gpa || image.gpa >= end) return [run];
  const imageEnd = image.gpa + image.size;
  const parts = [{ gpa: run.gpa, size: image.gpa - run.gpa }, image, { gpa: imageEnd, size: end - imageEnd }];
  return parts.filter(({ size }) => size > 0);
}

function writeFileHeader(header: Buffer, programs: number): void {
  ELF_MAGIC.copy(header);
  header[6] = 1;
  header.writeUInt16LE(ELF_CORE.type, 16);
  header.writeUInt16LE(ELF_CORE.machine, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(ELF_CORE.header), 32);
  header.writeUInt16LE(ELF_CORE.header, 52);
  header.writeUInt16LE(ELF_CORE.program, 54);
  header.writeUInt16LE(programs, 56);
}

interface Program {
  readonly type: number;
  readonly gpa: number;
  readonly gva?: bigint;
  readonly size: number;
  readonly offset: number;
}

const READABLE = 4;

function writeProgram(header: Buffer, at: number, { type, gpa, gva = 0n, size, offset }: Program): void {
  header.writeUInt32LE(type, at);
  header.writeUInt32LE(READABLE, at + 4);
  header.writeBigUInt64LE(BigInt(offset), at + 8);
  header.writeBigUInt64LE(gva, at + 16);
  header.writeBigUInt64LE(BigInt(gpa), at + 24);
  header.writeBigUInt64LE(BigInt(size), at + 32);
  header.writeBigUInt64LE(BigInt(size), at + 40);
}
