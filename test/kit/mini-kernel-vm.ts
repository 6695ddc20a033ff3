import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { getU64, putU64 } from '../../src/abi/bytes.ts';
import { kernelAddress, kernelNumber, miniKernelImage } from '../../src/drivers/embedded/index.ts';
import { UnixQmp } from '../../src/drivers/qemu/unix-qmp.ts';
import { isStubUsed } from './qemu-stub.ts';

const QEMU = 'qemu-system-x86_64';
/** The root of the checkout: this file is run from dist/test/kit. */
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const MAILBOX = kernelAddress('mailboxes');
const MEMORY_MIB = 64;
/** Nothing takes the guest this long, on any machine: it stands still, and was not to. */
const PATIENCE_MS = 60_000;

/** Why the mini kernel cannot be booted in QEMU here; undefined when it can. To be given to `skip`. */
export function whyNoMiniKernelVm(): string | undefined {
  const absent = [QEMU, 'as', 'objcopy'].find(
    (program) => spawnSync(program, ['--version'], { stdio: 'ignore' }).status !== 0,
  );
  return absent && `${absent} is not installed`;
}

/** test/qemu/mini-kernel.S as a file in `directory`. */
function assemble(directory: string): string {
  const [object, image] = ['kernel.o', 'kernel'].map((name) => join(directory, name)) as [string, string];
  const { address, entry } = miniKernelImage;
  const values = [`KERNEL_LOAD=${address}`, `KERNEL_ENTRY=${entry}`].flatMap((value) => ['--defsym', value]);
  const source = join(ROOT, 'test/qemu/mini-kernel.S');
  execFileSync('as', ['--32', '-I', join(ROOT, 'guest'), ...values, '-o', object, source]);
  execFileSync('objcopy', ['-O', 'binary', '-j', '.text', object, image]);
  return image;
}

/**
 * The mini kernel of the embedded machine in an unmodified QEMU (TCG), without its programs. It is asked for actions
 * through a file that is the guest's memory: no way that a driver uses is needed, or noticed.
 */
export class MiniKernelVm {
  /** A QMP socket that nobody uses. */
  readonly qmp: string;
  readonly #ownQmp: string;
  readonly #process: ChildProcess;
  readonly #directory: string;
  readonly #memory: number;

  /** Resolves when the kernel is up. */
  static async boot(): Promise<MiniKernelVm> {
    const directory = mkdtempSync(join(tmpdir(), 'kvmi-mini-kernel-'));
    const file = join(directory, 'memory');
    const memory = openSync(file, 'w+');
    ftruncateSync(memory, MEMORY_MIB << 20);
    const size = `${MEMORY_MIB}M`;
    const backend = `memory-backend-file,id=ram0,size=${size},share=on,mem-path=${file}`;
    const child = spawn(
      QEMU,
      [
        ...['-accel', 'tcg', '-cpu', 'max', '-m', size],
        ...['-object', backend, '-machine', 'pc,memory-backend=ram0'],
        ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-name', 'guest=kvmi-test'],
        ...['-kernel', assemble(directory)],
        ...['qmp', 'qmp-kit'].flatMap((name) => ['-qmp', `unix:${join(directory, name)},server=on,wait=off`]),
      ],
      { stdio: 'ignore' },
    );
    live.add(child);
    child.once('exit', () => live.delete(child));
    const vm = new MiniKernelVm(child, directory, memory);
    try {
      await vm.act('nop');
    } catch (error) {
      await vm.kill();
      throw error;
    }
    return vm;
  }

  private constructor(child: ChildProcess, directory: string, memory: number) {
    this.#process = child;
    this.#directory = directory;
    this.qmp = join(directory, 'qmp');
    this.#ownQmp = join(directory, 'qmp-kit');
    this.#memory = memory;
  }

  /** Asks for an action (guest/menu.inc); resolves with its result when the guest has done it. */
  async act(action: string, arg0 = 0n, arg1 = 0n): Promise<bigint> {
    const deadline = performance.now() + PATIENCE_MS;
    const before = this.#field('done');
    // The command last: the kernel looks at it first.
    this.#set('arg0', arg0);
    this.#set('arg1', arg1);
    this.#set('command', BigInt(kernelNumber('command', action)));
    while (this.#field('done') === before) {
      if (this.#ended) throw new Error(`QEMU ended before the guest did ${action}`);
      if (performance.now() > deadline)
        throw new Error(`the guest did not do ${action} in ${PATIENCE_MS} ms`);
      await delay(1);
    }
    return this.#field('result');
  }

  /** Whether somebody uses QEMU's gdbstub. */
  async isDebugged(): Promise<boolean> {
    const monitor = await UnixQmp.connect(this.#ownQmp);
    try {
      return await isStubUsed(monitor);
    } finally {
      monitor.close();
    }
  }

  /** Ends QEMU and removes what it left. */
  async kill(): Promise<void> {
    if (!this.#ended) {
      const exited = once(this.#process, 'exit');
      this.#process.kill('SIGKILL');
      await exited;
    }
    closeSync(this.#memory);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  get #ended(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  #field(name: string): bigint {
    const bytes = new Uint8Array(8);
    readSync(this.#memory, bytes, 0, 8, MAILBOX + kernelNumber('mailbox', name));
    return getU64(bytes, 0);
  }

  #set(name: string, value: bigint): void {
    const bytes = new Uint8Array(8);
    putU64(bytes, 0, value);
    writeSync(this.#memory, bytes, 0, 8, MAILBOX + kernelNumber('mailbox', name));
  }
}

const live = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of live) child.kill('SIGKILL');
});
