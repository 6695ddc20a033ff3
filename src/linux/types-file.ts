import { Btf } from '../btf/btf.ts';
import type { TypeSource } from '../btf/types.ts';
import { KvmiError, messageOf } from '../error.ts';
import { sectionsOf } from '../reading/elf-file.ts';
import { IsfTypes } from './isf-types.ts';
import { readKernelFile } from './kernel-file.ts';

/**
 * Reads a kernel's types from a file: a kernel with a .BTF section (vmlinux, vmlinuz, or Debian's package of it), bare
 * BTF (as /sys/kernel/btf/vmlinux), or an ISF file of Volatility 3; compressed ones, too. It must be of exactly the
 * kernel that runs in the guest. Throws a KvmiError with code E_TYPES_FILE when it is none of them, E_KERNEL_FILE or
 * E_PROGRAM when it cannot be read or unpacked.
 */
export async function typesFromFile(path: string): Promise<TypeSource> {
  const file = await readKernelFile(path);
  if (file[0] === 0x7f) return new Btf(btfSection(path, file));
  if (file.length > 2 && file.readUInt16LE(0) === 0xeb9f) return new Btf(file);
  try {
    return new IsfTypes(JSON.parse(file.toString('utf8')));
  } catch (error) {
    throw invalid(path, `it is neither ELF nor BTF nor JSON: ${messageOf(error)}`);
  }
}

function btfSection(path: string, file: Buffer): Buffer {
  const content = sectionsOf(file).find(({ name }) => name === '.BTF')?.content;
  if (content === undefined) throw invalid(path, 'it has no section .BTF');
  return content;
}

function invalid(path: string, why: string): KvmiError {
  return new KvmiError('E_TYPES_FILE', `${path}: ${why}`, {
    hint: 'Give a kernel with BTF, a file copied from /sys/kernel/btf/vmlinux, or an ISF file.',
  });
}
