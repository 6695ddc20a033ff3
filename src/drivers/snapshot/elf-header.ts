import { PAGE_SIZE } from '../../machine/index.ts';
import type { DumpNotes } from './dump-layout.ts';
import { ELF_CORE, ELF_MAGIC } from './elf-format.ts';
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

/** Headers and notes of a core file, padded to whole pages, and where the memory of each run goes. */
export function elfHeader(
  runs: readonly { readonly gpa: number; readonly size: number }[],
  from: DumpNotes,
): { readonly header: Buffer; readonly offsets: readonly number[] } {
  const notes = notesOf(from);
  const programs = runs.length + 1;
  const notesAt = ELF_CORE.header + programs * ELF_CORE.program;
  const header = Buffer.alloc(Math.ceil((notesAt + notes.length) / PAGE_SIZE) * PAGE_SIZE);
  ELF_MAGIC.copy(header);
  header[6] = 1;
  header.writeUInt16LE(ELF_CORE.type, 16);
  header.writeUInt16LE(ELF_CORE.machine, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(ELF_CORE.header), 32);
  header.writeUInt16LE(ELF_CORE.header, 52);
  header.writeUInt16LE(ELF_CORE.program, 54);
  header.writeUInt16LE(programs, 56);
  writeProgram(header, ELF_CORE.header, ELF_CORE.note, { gpa: 0, size: notes.length, offset: notesAt });
  header.set(notes, notesAt);
  const offsets: number[] = [];
  let offset = header.length;
  runs.forEach((run, i) => {
    writeProgram(header, ELF_CORE.header + (i + 1) * ELF_CORE.program, ELF_CORE.load, { ...run, offset });
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
