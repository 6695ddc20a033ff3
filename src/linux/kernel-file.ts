import { closeSync, constants, createReadStream, fstatSync, openSync, readSync } from 'node:fs';
import { KvmiError, messageOf } from '../error.ts';
import { fileFromTar, isDebianPackage, packageData } from './debian-package.ts';
import { decompressed, decompressorOf } from './decompress.ts';

/** With debugging information a kernel has several hundred megabytes. */
const MAX_FILE = 2 ** 31 - 4096;
const HEAD = 1024;
/** `boot/vmlinuz-…` of an image package, `usr/lib/debug/boot/vmlinux-…` of one with debugging information. */
const KERNEL_PATH = /(?:^|\/)vmlinu[xz](?:-[^/]*)?$/;

/**
 * Reads a file that has a kernel, or its types: one that is compressed is unpacked, and out of a bzImage (vmlinuz) or a
 * Debian package (linux-image-…, linux-image-…-dbg, also compressed ones) comes the vmlinux. Anything else is given as
 * it is. It takes the programs xz, zstd and the like. Throws a KvmiError with code E_KERNEL_FILE, or E_PROGRAM when
 * such a program is missing.
 */
export async function readKernelFile(path: string): Promise<Buffer> {
  const file = open(path);
  try {
    const head = file.read(0, HEAD);
    if (isDebianPackage(head)) return await unpacked(path, await kernelOfPackage(path, file));
    return await unpacked(path, file.read(0, file.size));
  } finally {
    closeSync(file.fd);
  }
}

interface OpenFile {
  readonly fd: number;
  readonly size: number;
  read(start: number, size: number): Buffer;
}

function open(path: string): OpenFile {
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = fstatSync(fd);
    const { size } = stats;
    const wrong = stats.isDirectory()
      ? 'it is a directory'
      : size > MAX_FILE
        ? 'it is larger than 2 GiB'
        : '';
    if (wrong !== '') {
      closeSync(fd);
      throw invalid(path, wrong);
    }
    const read = (start: number, length: number) => {
      const into = Buffer.allocUnsafeSlow(Math.max(0, Math.min(length, size - start)));
      let done = 0;
      for (let count = 1; done < into.length && count > 0; done += count)
        count = readSync(fd, into, done, into.length - done, start + done);
      return into.subarray(0, done);
    };
    return { fd, size, read };
  } catch (error) {
    throw error instanceof KvmiError ? error : invalid(path, messageOf(error), error);
  }
}

async function kernelOfPackage(path: string, file: OpenFile): Promise<Buffer> {
  const data = packageData(file.read);
  if (data === undefined || data.size === 0) throw invalid(path, 'it is a package without data.tar');
  const { start, size } = data;
  const archive = createReadStream(path, { start, end: start + size - 1, highWaterMark: 1 << 20 });
  const program = decompressorOf(file.read(start, HEAD));
  const tar = program === undefined ? archive : decompressed(program, archive);
  const kernel = await fileFromTar(tar, (name) => KERNEL_PATH.test(name), MAX_FILE);
  archive.destroy();
  if (kernel !== undefined) return kernel;
  throw invalid(path, 'the package has no vmlinuz and no vmlinux: is it a meta package?');
}

/** What a kernel may be wrapped in: a bzImage, and a compression. */
const MAX_LAYERS = 3;

async function unpacked(path: string, bytes: Buffer): Promise<Buffer> {
  let content = bytes;
  for (let layer = 0; layer < MAX_LAYERS; layer++) {
    content = payloadOf(content) ?? content;
    const program = decompressorOf(content);
    if (program === undefined) return content;
    content = await decompress(path, program, content);
  }
  return content;
}

/** Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length; undefined for what is no bzImage. */
function payloadOf(image: Buffer): Buffer | undefined {
  if (image.length < HEAD || image.toString('latin1', 0x202, 0x206) !== 'HdrS') return undefined;
  const start = ((image[0x1f1] || 4) + 1) * 512 + image.readUInt32LE(0x248);
  return image.subarray(start, start + image.readUInt32LE(0x24c));
}

async function decompress(path: string, program: string, content: Buffer): Promise<Buffer> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of decompressed(program, [content])) {
    parts.push(part);
    size += part.length;
    if (size > MAX_FILE) throw invalid(path, 'what it unpacks to is larger than 2 GiB');
  }
  if (size === 0) throw invalid(path, `${program} cannot unpack it`);
  return Buffer.concat(parts, size);
}

function invalid(path: string, why: string, cause?: unknown): KvmiError {
  return new KvmiError('E_KERNEL_FILE', `${path}: ${why}`, {
    hint: 'Give a vmlinux, a vmlinuz, or a Debian package linux-image-… of exactly the kernel that runs in the guest.',
    data: { path },
    ...(cause !== undefined && { cause }),
  });
}
