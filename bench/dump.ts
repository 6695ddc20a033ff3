import { spawnSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openQemu } from '../src/drivers/qemu/index.ts';
import { type DumpOptions, dumpMemory, manifestPath } from '../src/drivers/snapshot/index.ts';
import type { Machine } from '../src/machine/index.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../test/kit/linux-guest.ts';
import { type Measurement, median, type Suite } from './measurement.ts';

const RUNS = 5;
const MEBIBYTE = 2 ** 20;
/** How much of the guest's memory is in use, of 2 GiB. */
const IN_USE = { little: 64 * MEBIBYTE, much: 1536 * MEBIBYTE } as const;

interface Peer {
  readonly name: string;
  readonly command: string;
  readonly args: (from: string, to: string) => readonly string[];
  readonly budget?: NonNullable<Measurement['against']>['budget'];
}

const DD: Peer = {
  name: 'dd',
  command: 'dd',
  args: (from, to) => [`if=${from}`, `of=${to}`, 'bs=4M', 'conv=sparse,fsync'],
  budget: '>= 0.5',
};
const ZSTD: Peer = {
  name: 'zstd -1 -T0',
  command: 'zstd',
  args: (from, to) => ['-1', '-T0', '-q', '-f', from, '-o', to],
};

function seconds(start: number): number {
  return (performance.now() - start) / 1000;
}

/** The file that QEMU keeps the guest's memory in. */
function memoryFile(pid: number): string {
  const directory = `/proc/${pid}/fd`;
  const fd = readdirSync(directory).find((name) =>
    readlinkSync(join(directory, name)).includes('memory-backend-memfd'),
  );
  return join(directory, fd!);
}

/** Puts something that compresses as programs do into memory. */
function fill(source: string, size: number): void {
  const program = readFileSync(process.execPath);
  const fd = openSync(source, 'r+');
  for (let at = MEBIBYTE; at < size; at += program.length)
    writeSync(fd, program, 0, Math.min(program.length, size - at), at);
  closeSync(fd);
}

/** Takes turns with the peer, so that both meet the same disk. */
async function measured(
  name: string,
  { machine, source, directory }: { machine: Machine; source: string; directory: string },
  options: DumpOptions,
  peer: Peer,
): Promise<Measurement> {
  const total = machine.memory.regions.reduce((sum, { size }) => sum + size, 0);
  const file = join(directory, 'dump');
  const ours: number[] = [];
  const theirs: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    const start = performance.now();
    await dumpMemory(machine, file, options);
    ours.push(seconds(start));
    rmSync(file);
    rmSync(manifestPath(file));
    const peerStart = performance.now();
    const { status, error } = spawnSync(peer.command, peer.args(source, file), { stdio: 'ignore' });
    theirs.push(seconds(peerStart));
    if (status !== 0) throw error ?? new Error(`${peer.command} ended with ${status}`);
    rmSync(file);
  }
  return {
    name,
    value: total / MEBIBYTE / median(ours),
    unit: 'MiB/s',
    against: {
      what: `${peer.name} of the same bytes`,
      ratio: median(theirs) / median(ours),
      ...(peer.budget && { budget: peer.budget }),
    },
  };
}

/** Dumps of a machine with 2 GiB that has not been started, to the disk of the temporary directory. */
export const dumpSuite: Suite = {
  name: 'dump',
  unavailable: () => whyNoLinuxGuest(),
  async run() {
    const directory = mkdtempSync(join(tmpdir(), 'kvmi-bench-'));
    const vm = await LinuxGuest.boot({ memory: 2048, paused: true });
    try {
      const machine = await openQemu({ qmp: vm.qmp });
      const subject = { machine, source: memoryFile(vm.pid), directory };
      const elf: DumpOptions = { format: 'elf' };
      fill(subject.source, IN_USE.little);
      const results = [await measured('dump 2 GiB as ELF, 64 MiB in use', subject, elf, DD)];
      fill(subject.source, IN_USE.much);
      results.push(await measured('dump 2 GiB as ELF, 1.5 GiB in use', subject, elf, DD));
      if (spawnSync('zstd', ['--version']).status === 0) {
        const packed: DumpOptions = { ...elf, compression: 'zstd' };
        results.push(await measured('the same, packed with zstd', subject, packed, ZSTD));
      }
      await machine.close();
      return results;
    } finally {
      await vm.kill();
      rmSync(directory, { recursive: true });
    }
  },
};
