import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { commandLine, identityOf, lives, processes, statusNumber } from '../../src/system/proc.ts';
import { debianKernel } from './debian-kernel.ts';
import { buildInitramfs } from './initramfs.ts';

const run = promisify(execFile);
const PATIENCE_MS = 20_000;
/** Works without cgroups, without systemd and in a container; QEMU runs as Debian has it, as its own user. */
const QEMU_CONF = 'security_driver = "none"\ncgroup_controllers = []\nstdio_handler = "file"\n';
/** Where libvirt keeps what it must not share with a libvirt of this host. */
const PRIVATE = ['/run', '/var/lib/libvirt', '/var/log/libvirt', '/var/cache/libvirt', '/etc/libvirt/qemu'];

/** Why no libvirt can be started here; undefined when it can. */
export function whyNoLibvirt(): string | undefined {
  if (process.getuid?.() !== 0) return 'libvirt takes root';
  for (const program of ['libvirtd', 'virsh', 'unshare']) {
    const { error } = spawnSync(program, ['--version'], { stdio: 'ignore' });
    if (error) return `${program} is not installed`;
  }
  return undefined;
}

/**
 * A libvirt daemon of our own: its files, sockets and processes are in namespaces, apart from the host's. The shell is
 * the first process there and collects those that have lost their parent, which libvirt waits for.
 */
export class Libvirt {
  readonly directory: string;
  readonly #daemon: ChildProcess;

  private constructor(directory: string, daemon: ChildProcess) {
    this.directory = directory;
    this.#daemon = daemon;
  }

  static async start(): Promise<Libvirt> {
    const directory = mkdtempSync(join(tmpdir(), 'kvmi-libvirt-'));
    chmodSync(directory, 0o755);
    writeFileSync(join(directory, 'qemu.conf'), QEMU_CONF);
    writeFileSync(
      join(directory, 'libvirtd.conf'),
      `unix_sock_dir = "${directory}"\nauth_unix_rw = "none"\nlog_outputs = "3:file:${directory}/log"\n`,
    );
    const script = [
      `mount --bind ${directory}/qemu.conf /etc/libvirt/qemu.conf`,
      ...PRIVATE.map((path) => `mkdir -p ${path} && mount -t tmpfs tmpfs ${path}`),
      'mkdir -p /run/libvirt',
      `while true; do libvirtd -f ${directory}/libvirtd.conf; done`,
    ].join(' && ');
    const namespaces = [
      '--mount',
      '--propagation',
      'private',
      '--pid',
      '--fork',
      '--kill-child',
      '--mount-proc',
    ];
    const daemon = spawn('unshare', [...namespaces, 'sh', '-c', script], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    const libvirt = new Libvirt(directory, daemon);
    await libvirt.#ready();
    return libvirt;
  }

  /** The connection, as virsh takes it. */
  get uri(): string {
    return `qemu+unix:///system?socket=${this.directory}/libvirt-sock`;
  }

  /** Writes a domain with the guest of the tests down, and answers the name of the file. Its console is the file `console`. */
  describeLinuxGuest(name: string): string {
    const kernel = debianKernel();
    if (typeof kernel === 'string') throw new Error(kernel);
    const { directory } = this;
    writeFileSync(join(directory, 'initrd'), buildInitramfs('/bin/busybox'));
    const file = join(directory, `${name}.xml`);
    writeFileSync(
      file,
      `<domain type='qemu'>
        <name>${name}</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>
        <os>
          <type arch='x86_64' machine='pc'>hvm</type>
          <kernel>${kernel.image}</kernel><initrd>${directory}/initrd</initrd><cmdline>console=ttyS0 quiet</cmdline>
        </os>
        <features><acpi/><apic/></features>
        <devices>
          <emulator>/usr/bin/qemu-system-x86_64</emulator>
          <serial type='file'><source path='${directory}/console'/></serial>
          <serial type='null'/>
        </devices>
      </domain>`,
    );
    return file;
  }

  async virsh(...args: readonly string[]): Promise<string> {
    return (await run('virsh', ['-c', this.uri, ...args])).stdout.trim();
  }

  /** Ends the daemon, whose domains go on, and waits for its successor. */
  async restart(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#end(signal);
    await this.#ready();
  }

  /** Ends the daemon, whose domains go on. Answers the function that lets its successor start, and waits for it. */
  async down(): Promise<() => Promise<void>> {
    const shell = statusNumber(this.pid, 'PPid')!;
    process.kill(shell, 'SIGSTOP');
    await this.#end('SIGKILL');
    return async () => {
      process.kill(shell, 'SIGCONT');
      await this.#ready();
    };
  }

  /** Lets the daemon stand still. Answers the function that lets it go on. */
  freeze(): () => void {
    const { pid } = this;
    process.kill(pid, 'SIGSTOP');
    return () => process.kill(pid, 'SIGCONT');
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const before = identityOf(this.pid)!;
    process.kill(before.pid, signal);
    while (lives(before)) await new Promise((resolve) => setTimeout(resolve, 20));
  }

  /** The daemon's process. */
  get pid(): number {
    const conf = join(this.directory, 'libvirtd.conf');
    const pid = processes().find((candidate) => {
      const [program, , file] = commandLine(candidate);
      return program === 'libvirtd' && file === conf;
    });
    if (pid === undefined) throw new Error('libvirtd does not run');
    return pid;
  }

  async #ready(): Promise<void> {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const up = existsSync(join(this.directory, 'libvirt-sock'));
      if (up && (await this.virsh('list').catch(() => undefined)) !== undefined) return;
      if (this.#daemon.exitCode !== null || Date.now() > deadline) {
        await this.stop();
        throw new Error('libvirtd does not start');
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async stop(): Promise<void> {
    if (this.#daemon.exitCode === null && this.#daemon.kill('SIGKILL')) await once(this.#daemon, 'exit');
    rmSync(this.directory, { recursive: true, force: true });
  }
}
