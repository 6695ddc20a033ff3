import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CACHE, debianKernel, type KernelSeries } from '../kit/debian-kernel.ts';
import { GuestMemory } from '../kit/guest-memory.ts';
import type { GuestFile } from '../kit/initramfs.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/** Loaded in this order: each needs the ones before it. */
export const MODULES = ['llc', 'stp', 'garp'];

/** Why the tests on real guests cannot run here; undefined when they can. */
export function whyNot(series: KernelSeries): string | undefined {
  return whyNoLinuxGuest(series) ?? (programFile() === undefined ? 'there is no C compiler' : undefined);
}

let program: string | undefined;

/** The program with threads, files and sockets, compiled. */
function programFile(): string | undefined {
  const file = join(CACHE, 'linux-test-program');
  const source = join(import.meta.dirname, '..', '..', '..', 'test', 'linux', 'program.c');
  try {
    mkdirSync(CACHE, { recursive: true });
    if (program === undefined)
      execFileSync('cc', ['-static', '-O1', '-pthread', '-o', file, source], { stdio: 'ignore' });
    program = file;
  } catch {
    return undefined;
  }
  return program;
}

function moduleFiles(series: KernelSeries): GuestFile[] {
  const kernel = debianKernel(series);
  if (typeof kernel === 'string') throw new Error(kernel);
  const net = join(kernel.modules, 'kernel', 'net');
  const found = readdirSync(net, { recursive: true, encoding: 'utf8' });
  return MODULES.map((name) => {
    const path = found.find((entry) => new RegExp(`/${name}\\.ko(\\.xz)?$`).test(entry));
    if (path === undefined) throw new Error(`the kernel has no module ${name}`);
    const file = join(net, path);
    const content = path.endsWith('.xz')
      ? execFileSync('xz', ['-dc', file], { maxBuffer: 64 << 20 })
      : readFileSync(file);
    return { path: `/modules/${name}.ko`, content };
  });
}

export interface BusyGuest {
  readonly guest: LinuxGuest;
  readonly memory: GuestMemory;
}

/** A guest with two vCPUs, modules, and a process with threads, files and sockets of all kinds. */
export async function bootBusyGuest(series: KernelSeries, args: readonly string[] = []): Promise<BusyGuest> {
  const files = [{ path: '/program', content: readFileSync(programFile()!) }, ...moduleFiles(series)];
  const guest = await LinuxGuest.boot({ kernel: series, smp: 2, memory: 512, files, args });
  try {
    await guest.run('ip link set lo up');
    for (const name of MODULES) await guest.run(`insmod /modules/${name}.ko`);
    await guest.run('mkdir -p /mnt && mount -t tmpfs -o ro "a name" /mnt');
    await guest.run('ANSWER=42 EMPTY= /program one "two words" "" </dev/null >/tmp/ready 2>&1 &');
    await guest.run('until grep -q ready /tmp/ready; do sleep 0.2; done');
    return { guest, memory: new GuestMemory(guest.pid) };
  } catch (error) {
    await guest.kill();
    throw error;
  }
}

export async function shutDown(busy: BusyGuest | undefined): Promise<void> {
  busy?.memory.close();
  await busy?.guest.kill();
}
