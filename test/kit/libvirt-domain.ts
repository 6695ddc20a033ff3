import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { STATE_SIZE } from '../../src/abi/state.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import type { JournalState } from '../../src/drivers/qemu/guard/journal.ts';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { commandLine, lives, processes, readText } from '../../src/system/proc.ts';
import { journalOf, until } from './guarded.ts';
import { TestHandler } from './handler.ts';
import { KvmiProcess, kvmi } from './kvmi-process.ts';
import { Libvirt } from './libvirt.ts';

/** The guest's clock on the console calls it ten times a second. */
export const SYMBOL = '__x64_sys_write';
/** No host takes longer to boot the guest. */
const BOOT_MS = 180_000;

/** A domain of a libvirt of our own with the guest of the tests, and what has to be true of it after each misfortune. */
export class LibvirtDomain {
  readonly libvirt: Libvirt;
  readonly name: string;
  readonly target: string;
  /** For a process of kvmi, so that it finds this libvirt. */
  readonly environment: Readonly<Record<string, string>>;
  /** The first bytes at {@link SYMBOL} before anything was hooked. */
  #original = '';

  private constructor(libvirt: Libvirt, name: string) {
    this.libvirt = libvirt;
    this.name = name;
    this.target = `libvirt:${name}`;
    this.environment = { LIBVIRT_DEFAULT_URI: libvirt.uri };
  }

  static async start(name: string): Promise<LibvirtDomain> {
    const libvirt = await Libvirt.start();
    const domain = new LibvirtDomain(libvirt, name);
    try {
      await libvirt.virsh('define', libvirt.describeLinuxGuest(name));
      await libvirt.virsh('start', name);
      await domain.ticking('after the start', BOOT_MS);
      domain.#original = await domain.#bytesAtSymbol();
      assert.match(domain.#original, /^[0-9a-f]{16}$/);
      return domain;
    } catch (error) {
      await domain.stop();
      throw error;
    }
  }

  async stop(): Promise<void> {
    await this.libvirt.virsh('destroy', this.name).catch(() => {});
    await this.libvirt.stop();
  }

  virsh(command: string, ...args: readonly string[]): Promise<string> {
    return this.libvirt.virsh(command, this.name, ...args);
  }

  /** Its QEMU. */
  get pid(): number {
    return processes().find((pid) => commandLine(pid).includes(`guest=${this.name},debug-threads=on`))!;
  }

  /** What is armed in it. */
  get journal(): JournalState | undefined {
    return journalOf(this.pid);
  }

  get state(): Promise<string> {
    return this.virsh('domstate');
  }

  /** A command that has met the breakpoint a few times. It leads a process group. */
  async breaking(): Promise<KvmiProcess> {
    const args = ['break', this.target, SYMBOL, '-o', 'jsonl'];
    const command = new KvmiProcess(args, this.environment, undefined, true);
    await command.seen('stdout', /rip/, 3);
    return command;
  }

  /** A command whose breakpoint the guest does not come to. */
  async waiting(): Promise<KvmiProcess> {
    const args = ['break', this.target, '__x64_sys_getpgid', '-o', 'jsonl', '-v'];
    const command = new KvmiProcess(args, this.environment, undefined, true);
    await command.seen('stderr', /waiting at/);
    return command;
  }

  /** Hooks it to this process while `use` works, which can read the state of a vCPU. */
  async hooked(use: (readState: () => Promise<void>) => Promise<void>): Promise<void> {
    const machine = await openQemu({ libvirt: this.name, uri: this.libvirt.uri });
    try {
      const handler = await TestHandler.attach(machine);
      const vcpu = machine.vcpus[0]!;
      const read = () => handler.held(vcpu, async () => vcpu.readState(new Uint8Array(STATE_SIZE)));
      await read();
      await use(async () => void (await read()));
    } finally {
      await machine.close();
    }
  }

  /** Processes of virsh that work for kvmi. */
  virshs(): number[] {
    return processes().filter(
      (pid) =>
        /virsh$/.test(commandLine(pid)[0] ?? '') &&
        readText(`/proc/${pid}/environ`)?.includes(this.libvirt.directory),
    );
  }

  /** It runs, its kernel is what it was, and no stub, process or file is left. */
  async unharmed(when: string, journal?: JournalState): Promise<void> {
    await until(() => this.virshs().length === 0, `${when}: virsh is left`);
    await until(async () => (await this.state) === 'running', `${when}: it does not run`);
    await until(async () => {
      const devices = await this.virsh('qemu-monitor-command', '{"execute":"query-chardev"}');
      return !devices.includes('"label":"gdb"');
    }, `${when}: a gdbstub is left`);
    await until(() => this.journal === undefined, `${when}: a journal is left`);
    if (journal) {
      await until(() => !lives(journal.guard), `${when}: a guard is left`);
      await until(() => !existsSync(journal.workspace), `${when}: ${journal.workspace} is left`);
    }
    await this.ticking(when);
    assert.equal(await this.#bytesAtSymbol(), this.#original, `${when}: the code is not as it was`);
  }

  #ticks(): number {
    const console = join(this.libvirt.directory, 'console');
    return existsSync(console) ? [...readFileSync(console, 'latin1').matchAll(/^tick /gm)].length : 0;
  }

  async ticking(when: string, patience?: number): Promise<void> {
    const before = this.#ticks();
    await until(() => this.#ticks() > before + 1, `${when}: the guest's clock stands still`, patience);
  }

  async #bytesAtSymbol(): Promise<string> {
    const { code, stdout, stderr } = await kvmi(
      ['read', this.target, SYMBOL, '8', '--hex'],
      this.environment,
    );
    assert.equal(code, EXIT.ok.code, stderr);
    return stdout.trim();
  }
}

/** How many hits a command has printed. */
export function hitsOf({ stdout }: KvmiProcess): number {
  return [...stdout.matchAll(/rip/g)].length;
}

/** The guest comes to the breakpoint again and again. */
export function hitsGoOn(command: KvmiProcess): Promise<void> {
  return command.seen('stdout', /rip/, hitsOf(command) + 3);
}
