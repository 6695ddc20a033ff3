import { chmodSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { keyOf } from '../../src/drivers/qemu/guard/vm-identity.ts';
import { commandLine, identityOf, processes } from '../../src/system/proc.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { kvmi } from '../kit/kvmi-process.ts';
import { Libvirt } from '../kit/libvirt.ts';
import { PATIENCE_MS } from './child.ts';
import type { Subject } from './subject.ts';

const NAME = `kvmi-soak-${process.pid}`;
/** libvirt's daemon is away now and then: it is asked again. */
const PAUSE_MS = 100;
const TICK = /^tick /;

/** A domain of a libvirt of its own, which ends with it. Its clock on the console calls the function. */
export class LibvirtSubject implements Subject {
  static readonly offers = ['libvirt'] as const;
  readonly offers = LibvirtSubject.offers;
  readonly symbol = '__x64_sys_write';
  readonly direct = undefined;
  readonly target = `libvirt:${NAME}`;
  readonly environment: Readonly<Record<string, string>>;
  readonly directory: string;
  readonly pid: number;
  readonly monitor: Subject['monitor'];
  readonly fileNames: readonly string[];
  readonly #libvirt: Libvirt;
  #text: KernelText | undefined;

  static async boot(): Promise<LibvirtSubject> {
    const libvirt = await Libvirt.start();
    try {
      await libvirt.virsh('define', libvirt.describeLinuxGuest(NAME));
      await libvirt.virsh('start', NAME);
      const uuid = await libvirt.virsh('domuuid', NAME);
      const subject = new LibvirtSubject(libvirt, uuid);
      await subject.#booted();
      return subject;
    } catch (error) {
      await libvirt.stop();
      throw error;
    }
  }

  private constructor(libvirt: Libvirt, uuid: string) {
    this.#libvirt = libvirt;
    this.environment = { LIBVIRT_DEFAULT_URI: libvirt.uri };
    // QEMU's user writes there.
    this.directory = join(libvirt.directory, 'shown');
    mkdirSync(this.directory);
    chmodSync(this.directory, 0o777);
    this.pid = processes().find((pid) => commandLine(pid).some((word) => word.startsWith(`guest=${NAME},`)))!;
    this.monitor = monitorOf(libvirt);
    this.fileNames = [`journal-${keyOf({ uuid, ...identityOf(this.pid)!, socket: null, peer: null })}`];
  }

  get text(): KernelText {
    return this.#text!;
  }

  get clock(): number {
    return this.#console.filter((line) => TICK.test(line)).length;
  }

  get log(): readonly string[] {
    return this.#console.filter((line) => !TICK.test(line));
  }

  get #console(): readonly string[] {
    const file = join(this.#libvirt.directory, 'console');
    return existsSync(file) ? readFileSync(file, 'latin1').split(/\r?\n/).slice(0, -1) : [];
  }

  get daemon(): number {
    return this.#libvirt.pid;
  }

  async kill(): Promise<void> {
    await this.#libvirt.virsh('destroy', NAME).catch(() => {});
    await this.#libvirt.stop();
  }

  async #booted(): Promise<void> {
    for (const deadline = Date.now() + 3 * PATIENCE_MS; this.clock < 2; await sleep(PAUSE_MS))
      if (Date.now() > deadline) throw new Error('the libvirt domain does not boot');
    const bounds = ['_stext', '_etext'].map((symbol) => this.#addressOf(symbol));
    const [start, end] = await Promise.all(bounds);
    this.#text = await KernelText.between(this, start!, end!);
  }

  async #addressOf(symbol: string): Promise<bigint> {
    const { stdout, stderr } = await kvmi(['symbols', this.target, symbol, '-o', 'json'], this.environment);
    const found = /"address": *"?(0x[0-9a-f]+|\d+)/.exec(stdout);
    if (!found) throw new Error(`${symbol}: ${stdout}${stderr}`);
    return BigInt(found[1]!);
  }
}

function monitorOf(libvirt: Libvirt): Subject['monitor'] {
  const ask = async (...args: readonly string[]): Promise<string> => {
    for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(PAUSE_MS)) {
      try {
        return await libvirt.virsh('qemu-monitor-command', NAME, ...args);
      } catch (error) {
        if (Date.now() > deadline) throw error;
      }
    }
  };
  return {
    async execute(command, args = {}) {
      const answer = JSON.parse(await ask(JSON.stringify({ execute: command, arguments: args })));
      if ('return' in answer) return answer.return;
      throw new Error(`${command}: ${JSON.stringify(answer.error)}`);
    },
    hmp: (line) => ask('--hmp', line),
  };
}
