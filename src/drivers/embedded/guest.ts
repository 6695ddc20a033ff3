import { readFileSync } from 'node:fs';
import { getU64, putU64 } from '../../abi/bytes.ts';
import { KvmiError } from '../../error.ts';
import type { Gpa, Gva } from '../../machine/index.ts';
import { EmbeddedMachine, type EmbeddedMachineOptions, type GuestImage } from './machine.ts';

/** What guest/build.mjs found out about the mini kernel. */
interface KernelDescription {
  readonly load: number;
  readonly entry: number;
  readonly base: string;
  readonly symbols: Readonly<Record<string, string>>;
  readonly numbers: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** Where guest/ is, from dist/src/drivers/embedded/. */
const GUEST = new URL('../../../../guest/', import.meta.url);

const description = JSON.parse(readFileSync(new URL('kernel.json', GUEST), 'utf8')) as KernelDescription;
const KERNEL_BASE = BigInt(description.base);

/** The mini kernel as an image to start a machine with. */
export const miniKernelImage: GuestImage = {
  bytes: readFileSync(new URL('kernel.bin', GUEST)),
  address: description.load,
  entry: description.entry,
};

/** Virtual address of a symbol of the mini kernel. */
export function kernelSymbol(name: string): Gva {
  const value = description.symbols[name];
  if (value === undefined) {
    throw new KvmiError('E_ARGUMENT', `the mini kernel has no symbol ${name}`, {
      hint: 'See guest/kernel.json for its symbols.',
    });
  }
  return BigInt(value);
}

/** Physical address of a symbol of the mini kernel. */
export function kernelAddress(name: string): Gpa {
  return Number(kernelSymbol(name) - KERNEL_BASE);
}

/** A number of the mini kernel by group and name: the offset `task`, `pid`; the command `command`, `int3`. */
export function kernelNumber(group: string, name: string): number {
  const value = description.numbers[group]?.[name];
  if (value === undefined)
    throw new KvmiError('E_ARGUMENT', `the mini kernel has no number ${group}.${name}`);
  return value;
}

/** All symbols of the mini kernel, by name. */
export function kernelSymbols(): ReadonlyMap<string, Gva> {
  return new Map(Object.entries(description.symbols).map(([name, value]) => [name, BigInt(value)]));
}

/** Interrupt that makes an idle processor look into its mailbox. */
const DOORBELL = 0x41;
/** Result of an action that raised an exception: this and the vector. */
export const ACTION_FAULTED = 0xfa00_0000n;
const MAILBOX_SIZE = kernelNumber('mailbox', 'size');
/** Instructions that {@link MiniKernel.call} lets the guest run at most. */
const CALL_LIMIT = 5_000_000;

/** One task of the mini kernel. */
export interface MiniTask {
  readonly pid: number;
  readonly ppid: number;
  readonly comm: string;
  readonly cr3: bigint;
  readonly isKernel: boolean;
}

/**
 * The mini kernel in a machine: asks it for effects through its mailboxes, and reads what it keeps in memory. It
 * uses the memory from outside, like a device would.
 */
export class MiniKernel {
  readonly machine: EmbeddedMachine;

  constructor(machine: EmbeddedMachine) {
    this.machine = machine;
  }

  /** A 64-bit variable by symbol. */
  read(symbol: string, offset = 0): bigint {
    return getU64(this.machine.memory.bytes, kernelAddress(symbol) + offset);
  }

  /** Asks a processor to do an action (guest/menu.inc); returns at once. */
  post(action: string, arg0 = 0n, arg1 = 0n, cpu = 0): void {
    const mailbox = kernelAddress('mailboxes') + cpu * MAILBOX_SIZE;
    const message = new Uint8Array(24);
    putU64(message, 0, BigInt(kernelNumber('command', action)));
    putU64(message, 8, BigInt.asUintN(64, arg0));
    putU64(message, 16, BigInt.asUintN(64, arg1));
    this.machine.memory.write(mailbox, message);
    this.machine.interrupt(DOORBELL, cpu);
  }

  /** How many actions a processor finished. */
  done(cpu = 0): bigint {
    return this.read('mailboxes', cpu * MAILBOX_SIZE + kernelNumber('mailbox', 'done'));
  }

  /** The result of the last action. */
  result(cpu = 0): bigint {
    return this.read('mailboxes', cpu * MAILBOX_SIZE + kernelNumber('mailbox', 'result'));
  }

  /** Asks for an action and runs the machine until it is done; for machines that are not started. */
  call(action: string, arg0 = 0n, arg1 = 0n, cpu = 0): bigint {
    const before = this.done(cpu);
    this.post(action, arg0, arg1, cpu);
    for (let ran = 0; ran < CALL_LIMIT && this.done(cpu) === before; ran += 1000) {
      if (this.machine.run(1000) === 0) break;
    }
    if (this.done(cpu) === before) {
      throw new KvmiError('E_TIMEOUT', `the mini kernel did not finish ${action}`);
    }
    return this.result(cpu);
  }

  /** Runs the machine until the kernel is up and waits for commands; for machines that are not started. */
  boot(): void {
    this.call('nop');
  }

  /** The ring of tasks, from task 0 on. */
  tasks(): MiniTask[] {
    const { bytes } = this.machine.memory;
    const field = (name: string) => kernelNumber('task', name);
    const first = kernelSymbol('tasks');
    const tasks: MiniTask[] = [];
    let task: bigint = first;
    do {
      const at = Number(task - KERNEL_BASE);
      const comm = Buffer.from(bytes.subarray(at + field('comm'), at + field('comm') + 16)).toString(
        'latin1',
      );
      tasks.push({
        pid: Number(getU64(bytes, at + field('pid')) & 0xffff_ffffn),
        ppid: Number(getU64(bytes, at + field('ppid')) & 0xffff_ffffn),
        comm: comm.replace(/\0.*$/s, ''),
        cr3: getU64(bytes, at + field('cr3')),
        isKernel: (getU64(bytes, at + field('flags')) & 1n) !== 0n,
      });
      task = getU64(bytes, at + field('next'));
    } while (task !== first && tasks.length < 64);
    return tasks;
  }
}

export type EmbeddedOptions = Omit<EmbeddedMachineOptions, 'image'> &
  Partial<Pick<EmbeddedMachineOptions, 'image'>>;

/** A machine with the mini kernel in it, or another image. A boot argument keeps its programs from running. */
export function createEmbeddedMachine(options: EmbeddedOptions = {}): EmbeddedMachine {
  return new EmbeddedMachine({ image: miniKernelImage, ...options });
}
