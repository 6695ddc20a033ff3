import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { KvmiError } from '../error.ts';
import { readKernelFile } from './kernel-file.ts';

const KERNEL = Buffer.concat([Buffer.from('\x7fELF the kernel'), Buffer.alloc(3000, 'text ')]);

function tarEntry(path: string, content: Uint8Array): Buffer {
  const header = Buffer.alloc(512);
  header.write(path, 0);
  header.write(content.length.toString(8).padStart(11, '0'), 124);
  header.write('0', 156);
  header.write('ustar\0', 257);
  return Buffer.concat([header, content, Buffer.alloc(-content.length & 511)]);
}

function tar(...entries: Buffer[]): Buffer {
  return Buffer.concat([...entries, Buffer.alloc(1024)]);
}

function member(name: string, content: Uint8Array): Buffer {
  const header = `${name.padEnd(16)}${'0'.padEnd(32)}${String(content.length).padEnd(10)}\`\n`;
  return Buffer.concat([Buffer.from(header), content, Buffer.alloc(content.length & 1, '\n')]);
}

function debianPackage(name: string, data: Uint8Array): Buffer {
  return Buffer.concat([
    Buffer.from('!<arch>\n'),
    member('debian-binary', Buffer.from('2.0\n')),
    member('control.tar.gz', gzipSync(tar())),
    member(name, data),
  ]);
}

/** A bzImage as far as it is looked at: a header of 4 sectors, and the payload with the size of its result behind it. */
function bzImage(payload: Uint8Array): Buffer {
  const image = Buffer.concat([Buffer.alloc(5 * 512 + 64), payload, Buffer.alloc(4, 0x77)]);
  image[0x1f1] = 4;
  image.write('HdrS', 0x202);
  image.writeUInt32LE(64, 0x248);
  image.writeUInt32LE(payload.length + 4, 0x24c);
  return image;
}

/** By a program of this host; undefined when it is not installed. */
function compressed(program: string, content: Uint8Array): Buffer | undefined {
  const { stdout, status } = spawnSync(program, ['-c'], { input: content });
  return status === 0 ? stdout : undefined;
}

describe('a file with a kernel', () => {
  let directory: string;
  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-kernel-file-'));
  });
  after(() => rmSync(directory, { recursive: true }));

  function read(content: Uint8Array): Promise<Buffer> {
    const path = join(directory, 'file');
    writeFileSync(path, content);
    return readKernelFile(path);
  }

  const files = [
    tarEntry('./usr/share/doc/vmlinuz-6.1.txt.gz/', Buffer.alloc(700)),
    tarEntry('./usr/lib/debug/boot/vmlinux-6.1.0', KERNEL),
    tarEntry('./boot/System.map-6.1.0', Buffer.alloc(10)),
  ];

  test('is given as it is, or unpacked', async () => {
    assert.deepEqual(await read(KERNEL), KERNEL);
    assert.deepEqual(await read(gzipSync(KERNEL)), KERNEL);
    assert.deepEqual(await read(bzImage(gzipSync(KERNEL))), KERNEL);
    assert.deepEqual(await read(debianPackage('data.tar', tar(...files))), KERNEL);
    assert.deepEqual(await read(debianPackage('data.tar.gz', gzipSync(tar(...files)))), KERNEL);
    const image = tarEntry('./boot/vmlinuz-6.1.0', bzImage(gzipSync(KERNEL)));
    assert.deepEqual(await read(debianPackage('data.tar.gz', gzipSync(tar(image)))), KERNEL);
  });

  for (const program of ['xz', 'zstd', 'bzip2', 'lz4']) {
    const sample = compressed(program, KERNEL);
    test(`is unpacked with ${program}`, { skip: !sample && `${program} is not installed` }, async () => {
      assert.deepEqual(await read(sample!), KERNEL);
      assert.deepEqual(await read(bzImage(sample!)), KERNEL);
      const data = compressed(program, tar(...files, tarEntry('./large', Buffer.alloc(8 << 20, 1))))!;
      assert.deepEqual(await read(debianPackage(`data.tar.${program}`, data)), KERNEL);
    });
  }

  test('that is not there, or has none, is an error that says so', async () => {
    await assert.rejects(readKernelFile(join(directory, 'none')), { code: 'E_KERNEL_FILE' });
    await assert.rejects(read(debianPackage('data.tar.gz', gzipSync(tar(files[0]!)))), /no vmlinuz/);
    await assert.rejects(read(debianPackage('other', Buffer.alloc(10))), /without data.tar/);
  });

  test('that is damaged gives an answer or a KvmiError', async () => {
    const samples = [debianPackage('data.tar', tar(...files)), bzImage(gzipSync(KERNEL))];
    const change = fc.tuple(fc.nat(1), fc.nat(3000), fc.nat(255), fc.nat(9000));
    await fc.assert(
      fc.asyncProperty(change, async ([which, at, value, size]) => {
        const bytes = Buffer.from(samples[which]!);
        bytes[at % bytes.length] = value;
        try {
          assert.ok((await read(bytes.subarray(0, size + 1))).length >= 0);
        } catch (error) {
          if (!(error instanceof KvmiError)) throw error;
        }
      }),
      { numRuns: 100 },
    );
  });
});
