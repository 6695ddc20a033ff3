import { fstatSync } from 'node:fs';
import { getS64, putU32, putU64 } from '../../../abi/bytes.ts';
import { SIGNAL, SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { PAGE_SIZE } from '../../../machine/address.ts';
import { F_SEAL, libc, SystemError, seal, takeDescriptor, type Word } from '../../../system/libc.ts';
import { SharedMapping } from '../../../system/shared-mapping.ts';
import { AGENT_CODE, AGENT_ENTRY, CALL_LIMIT, CALL_SIZE, SLOT } from './agent-code.ts';
import type { SyscallSite } from './syscall-site.ts';
import { putUserRegister, type Tracee } from './tracee.ts';

/** A page for the slot and three for the arguments of its calls. */
const SLOT_STRIDE = 4 * PAGE_SIZE;
const SLOT_COUNT = 257;
const SIZE = PAGE_SIZE + SLOT_COUNT * SLOT_STRIDE;
export const ARGUMENT_SIZE = SLOT_STRIDE - PAGE_SIZE;

const PROT_READ = 1;
const PROT_WRITE = 2;
const PROT_EXEC = 4;
const MAP_SHARED = 1;
const MAP_FIXED = 0x10;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;

/** All signals but the one that the agent stops with. */
const ALL_BUT_SIGURG = new Uint8Array(8).fill(0xff);
ALL_BUT_SIGURG[2] = 0xff & ~(1 << (SIGNAL.SIGURG - 17));

/** One system call: its number and its arguments. */
export type Call = readonly [nr: number, ...args: Word[]];

/** What the agent and the tracer share for one thread. */
export class Slot {
  /** The page as laid out in agent.S. */
  readonly bytes: Uint8Array;
  /** Room for what calls point to. */
  readonly argument: Uint8Array;
  /** Addresses in the VMM. */
  readonly address: number;
  readonly argumentAddress: number;
  readonly #agent: Agent;

  constructor(agent: Agent, index: number) {
    this.#agent = agent;
    const offset = PAGE_SIZE + index * SLOT_STRIDE;
    this.bytes = agent.shared.subarray(offset, offset + PAGE_SIZE);
    this.argument = agent.shared.subarray(offset + PAGE_SIZE, offset + SLOT_STRIDE);
    this.address = agent.address + offset;
    this.argumentAddress = this.address + PAGE_SIZE;
  }

  /** Sends a stopped thread into the agent. `saved` is how it is restored when nobody traces it any more. */
  enter(tracee: Tracee, entry: keyof typeof AGENT_ENTRY): void {
    const regs = Uint8Array.from(tracee.regs);
    putUserRegister(regs, 'rbx', BigInt(this.address));
    putUserRegister(regs, 'rip', BigInt(this.#agent.address + AGENT_ENTRY[entry]));
    putUserRegister(regs, 'orig_rax', -1n);
    tracee.setRegisters(regs);
  }

  /** Keeps how the thread is restored: its registers and its signal mask. */
  save(regs: Uint8Array, mask: Uint8Array): void {
    this.bytes.set(mask, SLOT.signalMask);
    this.bytes.set(regs, SLOT.regs);
  }

  get saved(): Uint8Array {
    return this.bytes.subarray(SLOT.regs, SLOT.regs + 216);
  }

  get savedMask(): Uint8Array {
    return this.bytes.slice(SLOT.signalMask, SLOT.signalMask + 8);
  }

  /**
   * Carries out system calls in a stopped thread that `save` was called for, and leaves it stopped in the agent.
   * Returns what they return.
   */
  call(tracee: Tracee, calls: readonly Call[]): bigint[] {
    if (calls.length > CALL_LIMIT) throw new Error(`${calls.length} calls at once`);
    calls.forEach((call, index) => {
      const at = SLOT.calls + index * CALL_SIZE;
      for (let i = 0; i < 7; i++) putU64(this.bytes, at + i * 8, BigInt(call[i] ?? 0));
    });
    putU32(this.bytes, SLOT.count, calls.length);
    tracee.getRegisters();
    this.enter(tracee, 'call');
    tracee.setSignalMask(ALL_BUT_SIGURG);
    const event = tracee.uninterrupted(() => {
      for (;;) {
        tracee.cont();
        const stop = tracee.wait();
        if (stop.kind !== 'interrupt' && stop.kind !== 'group-stop') return stop;
      }
    });
    if (event.kind !== 'signal' || event.signal !== SIGNAL.SIGURG) {
      throw new KvmiError('E_TRACE', `thread ${tracee.tid}: ${event.kind} while it carried out calls`);
    }
    return calls.map((_, index) => getS64(this.bytes, SLOT.calls + index * CALL_SIZE + 56));
  }
}

/** Code and memory of ours in a VMM; see agent.S. */
export class Agent {
  /** Where it is in the VMM. */
  readonly address: number;
  /** The same memory in this process. */
  readonly shared: Uint8Array;
  readonly #mapping: SharedMapping;
  readonly #slots = new Map<number, Slot>();

  private constructor(address: number, mapping: SharedMapping) {
    this.address = address;
    this.#mapping = mapping;
    this.shared = mapping.bytes;
  }

  /** Maps it, by way of a stopped thread. */
  static install(pid: number, tracee: Tracee, site: SyscallSite): Agent {
    const inject = (what: string, nr: number, ...args: Word[]): number => {
      const result = tracee.inject(site.instruction, nr, ...args);
      if (result < 0n) throw new SystemError(`${what} in the VMM`, Number(-result));
      return Number(result);
    };
    const fd = inject('memfd_create', SYS.memfd_create, site.emptyString, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    inject('ftruncate', SYS.ftruncate, fd, SIZE);
    const held = takeDescriptor(pid, fd);
    let mapping: SharedMapping;
    try {
      // The VMM has the file, too, and must not be able to take pages from under this process.
      seal(held, F_SEAL.SHRINK | F_SEAL.GROW | F_SEAL.SEAL);
      if (fstatSync(held).size !== SIZE)
        throw new KvmiError('E_TRACE', "the agent's memory has another size");
      mapping = new SharedMapping("the agent's memory", held, SIZE, 'write');
    } finally {
      libc().close(held);
    }
    mapping.bytes.set(AGENT_CODE);
    const address = inject('mmap', SYS.mmap, 0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const executable = PROT_READ | PROT_EXEC;
    inject('mmap', SYS.mmap, address, PAGE_SIZE, executable, MAP_SHARED | MAP_FIXED, fd, 0);
    inject('close', SYS.close, fd);
    return new Agent(address, mapping);
  }

  /** The slot of a vCPU, or of another thread of the VMM (`index` 256). */
  slot(index: number): Slot {
    if (index >= SLOT_COUNT) {
      throw new KvmiError('E_UNSUPPORTED', `vCPU ${index}: at most ${SLOT_COUNT - 1} vCPUs can be traced`);
    }
    let slot = this.#slots.get(index);
    if (!slot) {
      slot = new Slot(this, index);
      this.#slots.set(index, slot);
    }
    return slot;
  }

  /** Unmaps it by way of a stopped thread that is not in it; without one, only from this process. */
  remove(tracee: Tracee | undefined, site: SyscallSite): void {
    tracee?.inject(site.instruction, SYS.munmap, this.address, SIZE);
    this.#mapping.unmap();
  }
}

/** The slot for threads that are no vCPU. */
export const SPARE_SLOT = SLOT_COUNT - 1;
