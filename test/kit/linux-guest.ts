import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UnixQmp } from '../../src/drivers/qemu/unix-qmp.ts';
import { CACHE, debianKernel, type KernelSeries } from './debian-kernel.ts';
import { buildInitramfs, type GuestFile } from './initramfs.ts';

const QEMU = 'qemu-system-x86_64';
const BUSYBOX = '/bin/busybox';
const BOOT_TIMEOUT_MS = 180_000;
const COMMAND_TIMEOUT_MS = 60_000;

export interface LinuxGuestOptions {
  /** Number of vCPUs; 1 if not given. */
  readonly smp?: number;
  /** In MiB; 256 if not given. */
  readonly memory?: number;
  /** How QEMU allocates guest memory: a shared memfd (default), or privately as it does on its own. */
  readonly backend?: 'memfd' | 'private';
  readonly kernel?: KernelSeries;
  /** Added to the kernel's command line. */
  readonly append?: string;
  readonly files?: readonly GuestFile[];
  /** Added to QEMU's command line. */
  readonly args?: readonly string[];
  /** Boots, instead of continuing from the state saved by an earlier boot of the same configuration. */
  readonly fresh?: boolean;
  /** Starts with the vCPUs stopped (`-S`); implies `fresh`, and the prompt is not waited for. */
  readonly paused?: boolean;
  /** A file with the state of a guest of the same options, which this one continues from. */
  readonly incoming?: string;
}

/** The reason why no guest can be booted here; undefined when one can. To be given to `skip`. */
export function whyNoLinuxGuest(kernel?: KernelSeries): string | undefined {
  if (qemuVersion() === undefined) return `${QEMU} is not installed`;
  if (!existsSync(BUSYBOX)) return 'busybox-static is not installed';
  const found = debianKernel(kernel);
  return typeof found === 'string' ? found : undefined;
}

let version: string | undefined;
function qemuVersion(): string | undefined {
  try {
    version ??= execFileSync(QEMU, ['--version'], { encoding: 'utf8' }).split('\n')[0];
  } catch {
    return undefined;
  }
  return version;
}

/** What the guest's shell answers to a line of which it got the end only: the console of a busy guest loses characters. */
const LOST = /^@ \d+ \d+\n/;

/** A Debian kernel with a busybox shell under QEMU TCG. */
export class LinuxGuest {
  readonly process: ChildProcess;
  readonly pid: number;
  /** Sockets, logs; removed by {@link kill}. */
  readonly directory: string;
  /** A QMP socket that nobody uses. */
  readonly qmp: string;
  /** The kit's own QMP connection, for the test's use. */
  readonly monitor: UnixQmp;
  readonly #console: Socket;
  readonly #shell: Socket;
  #ticks = 0;
  /** How often the clock has moved: what it shows goes back with the VM. */
  #moves = 0;
  #log: string[] = [];
  #consoleTail = '';
  #tickListeners = new Set<() => void>();
  #shellBuffer = Buffer.alloc(0);
  #shellListeners = new Set<() => void>();
  #commands = Promise.resolve();
  #nextCommand = 1;

  static async boot(options: LinuxGuestOptions = {}): Promise<LinuxGuest> {
    const kernel = debianKernel(options.kernel);
    if (typeof kernel === 'string') throw new Error(kernel);
    const directory = mkdtempSync(join(tmpdir(), 'kvmi-guest-'));
    const initramfs = buildInitramfs(BUSYBOX, options.files);
    const initrd = join(directory, 'initrd');
    writeFileSync(initrd, initramfs);
    const machine = machineArguments(options, kernel.image);
    const key = createHash('sha256')
      .update(JSON.stringify([qemuVersion(), machine]))
      .update(initramfs);
    const state = options.incoming ?? join(CACHE, `guest-${key.digest('hex').slice(0, 16)}.state`);
    const saved = !options.fresh && !options.paused && existsSync(state);
    const args = [...machine, '-initrd', initrd, ...channelArguments(directory)];
    if (options.paused) args.push('-S');
    if (saved) args.push('-incoming', `exec:cat ${state}`);
    const guest = await LinuxGuest.#start(args, directory);
    try {
      if (!saved && !options.paused)
        await guest.#waitShell((buffer) => buffer.includes('@ready\n'), BOOT_TIMEOUT_MS);
      if (saved) {
        // What was saved while the VM ran runs on by itself.
        await guest.status('query-status', options.incoming ? 'running' : 'paused');
        if (!options.incoming) await guest.monitor.execute('cont');
      }
      if (!options.paused) await guest.run('true', BOOT_TIMEOUT_MS);
      if (!saved && !options.fresh && !options.paused) await guest.#save(state);
    } catch (error) {
      await guest.kill();
      throw error;
    }
    return guest;
  }

  static async #start(args: readonly string[], directory: string): Promise<LinuxGuest> {
    const log = join(directory, 'stderr');
    const child = spawn('sh', ['-c', `exec ${QEMU} "$@" 2>${log}`, 'sh', ...args], { stdio: 'ignore' });
    live.add(child);
    child.once('exit', () => live.delete(child));
    try {
      const console = await connectRetrying(join(directory, 'console'), child);
      const shell = await connectRetrying(join(directory, 'shell'), child);
      const monitor = await UnixQmp.connect(join(directory, 'qmp-kit'));
      return new LinuxGuest(child, directory, monitor, console, shell);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  private constructor(
    child: ChildProcess,
    directory: string,
    monitor: UnixQmp,
    console: Socket,
    shell: Socket,
  ) {
    this.process = child;
    this.pid = child.pid!;
    this.directory = directory;
    this.qmp = join(directory, 'qmp');
    this.monitor = monitor;
    this.#console = console;
    this.#shell = shell;
    console.on('data', (chunk: Buffer) => this.#receiveConsole(chunk.toString('latin1')));
    shell.on('data', (chunk: Buffer) => {
      this.#shellBuffer = Buffer.concat([this.#shellBuffer, chunk]);
      for (const listener of this.#shellListeners) listener();
    });
    for (const socket of [console, shell]) socket.on('error', () => {});
  }

  /** What the clock on the console shows: it counts ten times a second while the guest runs. */
  get ticks(): number {
    return this.#ticks;
  }

  /** What the kernel printed on the console, but for the clock. */
  get log(): readonly string[] {
    return this.#log;
  }

  /** Resolves when the guest's clock has moved `count` times more, rejects after `timeoutMs`. */
  nextTicks(count = 1, timeoutMs = 10_000): Promise<void> {
    const until = this.#moves + count;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#tickListeners.delete(check);
        reject(new Error(`the guest's clock did not move ${count} times within ${timeoutMs} ms`));
      }, timeoutMs);
      const check = () => {
        if (this.#moves < until) return;
        clearTimeout(timer);
        this.#tickListeners.delete(check);
        resolve();
      };
      this.#tickListeners.add(check);
    });
  }

  /** Runs a shell command in the guest and answers its output; rejects when it fails or takes too long. */
  run(command: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<string> {
    const result = this.#commands.then(() => this.#run(command, timeoutMs));
    this.#commands = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  async #run(command: string, timeoutMs: number): Promise<string> {
    const id = this.#nextCommand++;
    const header = new RegExp(`@${id} (\\d+) (\\d+)\\n`);
    const send = (): void => {
      this.#shellBuffer = Buffer.alloc(0);
      this.#shell.write(`${id} ${Buffer.from(command).toString('base64')}\n`);
    };
    send();
    let status = 0;
    let output = '';
    await this.#waitShell((text) => {
      if (LOST.test(text)) send();
      const match = header.exec(text);
      if (match === null) return false;
      const start = match.index + match[0].length;
      if (text.length < start + Number(match[2])) return false;
      status = Number(match[1]);
      output = text.slice(start, start + Number(match[2]));
      return true;
    }, timeoutMs);
    if (status !== 0) throw new Error(`in the guest: ${command}: status ${status}: ${output}`);
    return output;
  }

  #waitShell(done: (text: string) => boolean, timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = () => {
        if (!done(this.#shellBuffer.toString('latin1'))) return;
        clearTimeout(timer);
        this.#shellListeners.delete(check);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#shellListeners.delete(check);
        const tail = this.#shellBuffer.toString('latin1').slice(-200);
        reject(new Error(`the guest did not answer within ${timeoutMs} ms; got ${JSON.stringify(tail)}`));
      }, timeoutMs);
      this.#shellListeners.add(check);
      check();
    });
  }

  #receiveConsole(text: string): void {
    const lines = (this.#consoleTail + text).split('\n');
    this.#consoleTail = lines.pop()!;
    for (const line of lines) {
      const tick = /^tick (\d+)/.exec(line);
      if (tick) {
        this.#ticks = Number(tick[1]);
        this.#moves++;
      } else this.#log.push(line.trimEnd());
    }
    for (const listener of this.#tickListeners) listener();
  }

  /** Saves the machine's state for later boots, then goes on. */
  async #save(state: string): Promise<void> {
    const file = `${state}.${process.pid}`;
    await this.monitor.execute('stop');
    await this.monitor.execute('migrate-set-parameters', { 'max-bandwidth': 1e10 });
    await this.monitor.execute('migrate', { uri: `exec:cat >${file}` });
    await this.status('query-migrate', 'completed');
    renameSync(file, state);
    await this.monitor.execute('cont');
  }

  /** Waits until a query of QMP answers with a status. */
  async status(query: string, wanted: string): Promise<void> {
    for (const deadline = Date.now() + COMMAND_TIMEOUT_MS; ; ) {
      const { status } = (await this.monitor.execute(query)) as { status: string };
      if (status === wanted) return;
      if (status === 'failed' || Date.now() > deadline) throw new Error(`${query}: ${status}, not ${wanted}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Ends QEMU and removes what it left. */
  async kill(): Promise<void> {
    this.monitor.close();
    this.#console.destroy();
    this.#shell.destroy();
    if (this.process.exitCode === null && this.process.signalCode === null) {
      const exited = once(this.process, 'exit');
      this.process.kill('SIGKILL');
      await exited;
    }
    rmSync(this.directory, { recursive: true, force: true });
  }
}

const live = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of live) child.kill('SIGKILL');
});

function machineArguments(options: LinuxGuestOptions, kernel: string): string[] {
  const size = `${options.memory ?? 256}M`;
  const memory =
    options.backend === 'private'
      ? ['-machine', 'pc']
      : [
          '-object',
          `memory-backend-memfd,id=ram0,size=${size},share=on`,
          '-machine',
          'pc,memory-backend=ram0',
        ];
  mkdirSync(CACHE, { recursive: true });
  return [
    // With random numbers from the CPU the kernel does not change its own text once it has gathered enough, minutes after boot.
    ...['-accel', 'tcg', '-cpu', 'qemu64,+rdrand', '-m', size, '-smp', String(options.smp ?? 1), ...memory],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-name', 'guest=kvmi-test'],
    ...['-kernel', kernel, '-append', `console=ttyS0 quiet panic=0 oops=panic ${options.append ?? ''}`],
    ...(options.args ?? []),
  ];
}

function channelArguments(directory: string): string[] {
  const socket = (name: string) => `unix:${join(directory, name)},server=on,wait=off`;
  return [
    ...['-serial', socket('console'), '-serial', socket('shell')],
    ...['-qmp', socket('qmp-kit'), '-qmp', socket('qmp')],
  ];
}

async function connectRetrying(path: string, child: ChildProcess): Promise<Socket> {
  for (let attempt = 0; ; attempt++) {
    const socket = connect(path);
    try {
      await once(socket, 'connect');
      return socket;
    } catch (error) {
      if (attempt === 200 || child.exitCode !== null) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
