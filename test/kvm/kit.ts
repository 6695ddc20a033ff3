import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { kernelMemslots } from '../../src/drivers/kvm/attach.ts';
import type { Memslot } from '../../src/drivers/kvm/slots/memslots.ts';
import { VmFile } from '../../src/drivers/kvm/slots/vm-file.ts';
import { kvmDescriptors } from '../../src/system/proc.ts';

/** The root of the checkout: this file is run from dist/test/kvm. */
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
export const RUN_MAIN = join(ROOT, 'dist/src/run/run-main.js');

function accessible(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

function hasKoffi(): boolean {
  try {
    createRequire(import.meta.url)('koffi');
    return true;
  } catch {
    return false;
  }
}

/** Whether a program can be run here. */
export function hasProgram(name: string): boolean {
  return spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** Why tests on a real KVM cannot run here; undefined when they can. Programs that a test needs besides are named. */
export function missing(...programs: readonly string[]): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'needs Linux on x86-64';
  if (!accessible('/dev/kvm')) return 'needs /dev/kvm, readable and writable';
  if (!hasKoffi()) return 'needs the optional dependency koffi';
  if (process.getuid?.() !== 0) return 'needs root, to trace other processes';
  const absent = programs.find((program) => !hasProgram(program));
  return absent && `needs ${absent}`;
}

/** A folder that is removed when the process ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'kvmi-test-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Compiles test/kvm/NAME.c and returns the program's path. */
export function compile(name: string, folder: string): string {
  const program = join(folder, name);
  execFileSync('gcc', ['-O2', '-Wall', '-o', program, join(ROOT, 'test/kvm', `${name}.c`), '-lpthread']);
  return program;
}

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Started {
  readonly process: ReturnType<typeof spawn>;
  readonly finished: Promise<Finished>;
  /** What it has printed so far. */
  output(): string;
  /** Resolves when the program has printed `text`. */
  printed(text: string): Promise<void>;
}

/** Starts a program; it is killed after `timeout` ms. */
export function start(program: string, args: readonly string[], timeout = 30_000): Started {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], timeout, killSignal: 'SIGKILL' });
  let stdout = '';
  let stderr = '';
  const waiting: { text: string; resolve: () => void }[] = [];
  child.stdout.on('data', (bytes: Buffer) => {
    stdout += bytes.toString();
    for (const { text, resolve } of waiting) if (stdout.includes(text)) resolve();
  });
  child.stderr.on('data', (bytes: Buffer) => {
    stderr += bytes.toString();
  });
  const finished = new Promise<Finished>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
  return {
    process: child,
    finished,
    output: () => stdout,
    async printed(text) {
      const seen = new Promise<void>((resolve) => {
        if (stdout.includes(text)) resolve();
        else waiting.push({ text, resolve });
      });
      const early = finished.then(({ code, stderr }) => {
        if (!stdout.includes(text))
          throw new Error(`ended (${code}) before it printed ${text}: ${stdout}${stderr}`);
      });
      await Promise.race([seen, early]);
    },
  };
}

/** Runs a program under the host side. */
export function runUnder(args: readonly string[], options: readonly string[] = []): Started {
  return start(process.execPath, [RUN_MAIN, ...options, '--', ...args]);
}

/** A QEMU with `-accel kvm` that runs the guest of counter.S. It is nobody's child: this process does not wait for it. */
export interface Qemu {
  readonly pid: number;
  kill(): void;
}

/** Assembles test/kvm/NAME.S to a flat image. */
export function assemble(name: string, folder: string): string {
  const object = join(folder, `${name}.o`);
  const image = join(folder, `${name}.bin`);
  execFileSync('gcc', ['-c', '-o', object, join(ROOT, 'test/kvm', `${name}.S`)]);
  execFileSync('objcopy', ['-O', 'binary', '-j', '.text', object, image]);
  return image;
}

/** Starts one; its vCPUs exist when this resolves. */
export async function startQemu(folder: string, vcpus = 1): Promise<Qemu> {
  const image = assemble('counter', folder);
  return startQemuWith(`-M pc -bios ${image} -nodefaults -m 16`, vcpus);
}

/** Starts one with other options than {@link startQemu}, and with what they make it run. */
export async function startQemuWith(options: string, vcpus = 1): Promise<Qemu> {
  const args = `-accel kvm ${options} -display none -smp ${vcpus}`;
  const script = `qemu-system-x86_64 ${args} >/dev/null 2>&1 & echo $!`;
  const pid = Number.parseInt(execFileSync('sh', ['-c', script]).toString(), 10);
  const kill = (): void => {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  };
  process.on('exit', kill);
  await until(() => kvmDescriptors(pid).vcpus.length === vcpus, 'QEMU has its vCPUs');
  return { pid, kill };
}

/** Waits until something is so; fails after half a minute. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`not within 30 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The memory slots of a process's VM, as the kernel has them now. */
export function kernelSlots(pid: number): readonly Memslot[] {
  const file = new VmFile(pid, kvmDescriptors(pid).vms[0]!);
  try {
    return kernelMemslots(file);
  } finally {
    file.release();
  }
}
