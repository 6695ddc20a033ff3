import { getU32, getU64, putU32, putU64 } from '../../abi/bytes.ts';
import {
  KVM,
  KVM_CPUID_SIGNIFICANT_INDEX,
  KVM_XCRS_SIZE,
  kvmCpuidEntry,
  kvmVcpuEvents,
  kvmXcr,
} from '../../abi/kvm.ts';
import { SYS } from '../../abi/linux.ts';
import { MSRS_OFFSET, putMode, REGS_OFFSET, SREGS_OFFSET } from '../../abi/state.ts';
import { EVENT_MSRS, hasErrorCode, KVM_XSAVE_SIZE, kvmRegs, kvmSregs, VECTOR } from '../../abi/x86.ts';
import { type Awaitable, deferred } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import type { CpuidLeaf, Exception, Gpa, Stop, Vcpu } from '../../machine/index.ts';
import { MTRR_MSRS, mtrrType } from '../../machine/mtrr.ts';
import { SystemError } from '../../system/libc.ts';
import { msrValue, putMsrRequest, putMsrWrite } from './msrs.ts';
import { SLOT } from './thread/agent-code.ts';
import type { HoldReason, ThreadOwner, VcpuThread } from './thread/vcpu-thread.ts';

const MAX_CPUID_ENTRIES = 256;
const CPUID_HEADER = 8;
/** Vectors with an error code (Intel SDM vol. 3, 6.13). */
/** The MSRs of an event that are not among the special registers, in the order of the agent's table. */
const AGENT_MSRS = Object.entries(EVENT_MSRS).filter(([name]) => name !== 'efer');
const AGENT_MSR_OFFSETS = AGENT_MSRS.map(([name]) => MSRS_OFFSET + Object.keys(EVENT_MSRS).indexOf(name) * 8);
const EFER_OFFSET = MSRS_OFFSET + Object.keys(EVENT_MSRS).indexOf('efer') * 8;
const SREGS_EFER = kvmSregs.offsetOf('efer');
/** How long a vCPU that does not enter the guest is waited for before it is taken where its VMM keeps it, in ms. */
const PARK_AFTER_MS = 30;

/** What the machine does when a vCPU is held. */
export interface VcpuOwner {
  /** The vCPU is outside the guest; `vcpu.resume` lets it go on. */
  held(vcpu: KvmVcpu, reason: HoldReason): void;
  /** Its thread has ended. */
  gone(vcpu: KvmVcpu): void;
  /** Nobody knows its thread yet. */
  search(vcpu: KvmVcpu): void;
  /** Runs something that traces; a failure ends the machine. */
  guarded(run: () => void): void;
  /** Whether KVM has an exit of it to complete. */
  exitPending(vcpu: KvmVcpu): boolean;
  /** Whether an exit that other VMs have, too, is because of a trap. */
  claims(vcpu: KvmVcpu): boolean;
  /** Ends what an instruction has begun: its registers are about to be replaced. */
  settle(vcpu: KvmVcpu): void;
  /** Writes what is armed on it where its agent takes it from. */
  prepareEntry(vcpu: KvmVcpu): void;
}

/** A vCPU of a VM on stock KVM. */
export class KvmVcpu implements Vcpu, ThreadOwner {
  readonly index: number;
  /** Its descriptor in the VMM. */
  readonly fd: number;
  readonly started = true;
  tscHz = 0;
  thread: VcpuThread | undefined;
  /** A call of the handler's `request` is owed. */
  requested = false;
  /** Traps that are armed, by the machine. */
  armedTraps = 0;
  /** An injection to be reported before the guest is entered. */
  trap: Extract<Stop, { kind: 'trap' }> | undefined;
  readonly #owner: VcpuOwner;
  readonly #tasks: (() => void)[] = [];
  #leaving: { promise: Promise<void>; resolve: () => void } | undefined;
  #park: NodeJS.Timeout | undefined;

  /** @internal */
  constructor(owner: VcpuOwner, index: number, fd: number) {
    this.#owner = owner;
    this.index = index;
    this.fd = fd;
  }

  /** Its thread was found. */
  adopt(thread: VcpuThread): void {
    this.thread = thread;
    putMsrRequest(
      thread.slot.bytes.subarray(SLOT.msrs),
      AGENT_MSRS.map(([, index]) => index),
    );
    this.#parkLater();
  }

  get armed(): boolean {
    return this.armedTraps > 0;
  }

  get exitPending(): boolean {
    return this.#owner.exitPending(this);
  }

  claims(): boolean {
    return this.#owner.claims(this);
  }

  get wanted(): boolean {
    return this.requested || this.#tasks.length > 0;
  }

  /** Runs `task` as soon as the vCPU is outside the guest. */
  whenHeld<T>(task: () => T): Awaitable<T> {
    if (this.thread?.phase === 'held') return task();
    const { promise, resolve, reject } = deferred<T>();
    this.#tasks.push(() => {
      try {
        resolve(task());
      } catch (error) {
        reject(error);
      }
    });
    this.kick();
    return promise;
  }

  /** Does what waits for the vCPU to be outside the guest. */
  runTasks(): void {
    for (let task = this.#tasks.shift(); task; task = this.#tasks.shift()) task();
  }

  request(): Awaitable<void> {
    this.requested = true;
    if (this.thread && (this.thread.phase === 'held' || this.thread.phase === 'catching')) {
      this.#parkLater();
      return undefined;
    }
    this.kick();
    if (!this.thread) return undefined;
    this.#leaving ??= deferred<void>();
    return this.#leaving.promise;
  }

  /** Brings what is wanted and armed into effect. */
  kick(): void {
    if (this.thread) {
      this.thread.kick();
      this.#parkLater();
    } else {
      this.#owner.search(this);
    }
  }

  /** A vCPU that its VMM has paused does not enter the guest; it is served nevertheless. */
  #parkLater(): void {
    if (!this.wanted || this.#park) return;
    this.#park = setTimeout(() => {
      this.#park = undefined;
      if (!this.wanted || !this.thread) return;
      this.#owner.guarded(() => this.thread?.park());
      this.#parkLater();
    }, PARK_AFTER_MS);
  }

  held(reason: HoldReason): void {
    clearTimeout(this.#park);
    this.#park = undefined;
    this.#owner.held(this, reason);
  }

  prepareEntry(): void {
    this.#owner.prepareEntry(this);
  }

  left(): void {
    this.#leaving?.resolve();
    this.#leaving = undefined;
  }

  gone(): void {
    clearTimeout(this.#park);
    this.left();
    this.thread = undefined;
    this.#owner.gone(this);
  }

  /** The guest's registers as of this stop: kvm_regs, kvm_sregs and MSRs in the layout of `vcpuState`. */
  readState(into: Uint8Array): void {
    const thread = this.#held();
    const { page, slot } = thread;
    if (!thread.synced) this.#fetchRegisters(thread);
    into.fill(0, 0, REGS_OFFSET);
    into.set(page.regs, REGS_OFFSET);
    into.set(page.sregs, SREGS_OFFSET);
    if (!thread.msrsRead) {
      this.#ioctl(KVM.GET_MSRS, slot.address + SLOT.msrs, 'KVM_GET_MSRS');
      thread.msrsRead = true;
    }
    const msrs = slot.bytes.subarray(SLOT.msrs);
    for (let i = 0; i < AGENT_MSR_OFFSETS.length; i++) putU64(into, AGENT_MSR_OFFSETS[i]!, msrValue(msrs, i));
    into.set(page.sregs.subarray(SREGS_EFER, SREGS_EFER + 8), EFER_OFFSET);
    putMode(into);
  }

  /** For a stop whose exit did not publish the registers. */
  #fetchRegisters(thread: VcpuThread): void {
    const { slot, page } = thread;
    const regs = slot.argumentAddress;
    const sregs = regs + kvmRegs.size;
    const [first, second] = thread.call([
      [SYS.ioctl, this.fd, KVM.GET_REGS, regs],
      [SYS.ioctl, this.fd, KVM.GET_SREGS, sregs],
    ]);
    failIfNegative(first!, 'KVM_GET_REGS');
    failIfNegative(second!, 'KVM_GET_SREGS');
    page.regs.set(slot.argument.subarray(0, kvmRegs.size));
    page.sregs.set(slot.argument.subarray(kvmRegs.size, kvmRegs.size + kvmSregs.size));
    thread.synced = true;
  }

  #held(): VcpuThread {
    if (this.thread?.phase === 'held') return this.thread;
    throw new KvmiError('E_RUNNING', `vCPU ${this.index} is not stopped`, {
      hint: 'Pause it first; registers can only be read while it is outside the guest.',
    });
  }

  /** One ioctl of the vCPU, in its own thread. */
  #ioctl(request: number, argument: number, what: string): number {
    const [result] = this.#held().call([[SYS.ioctl, this.fd, request, argument]]);
    return failIfNegative(result!, what);
  }

  /** An ioctl whose argument is a structure: `prepare` writes it before, and it is returned as it is afterwards. */
  #exchange(request: number, what: string, prepare?: (argument: Uint8Array) => void): Uint8Array {
    const { slot } = this.#held();
    prepare?.(slot.argument);
    this.#ioctl(request, slot.argumentAddress, what);
    return slot.argument;
  }

  writeRegisters(regs: Uint8Array): void {
    const thread = this.#held();
    this.#owner.settle(this);
    if (!thread.synced) this.#fetchRegisters(thread);
    thread.page.regs.set(regs.subarray(0, kvmRegs.size));
    thread.page.markRegsDirty();
  }

  readMsr(index: number): bigint | undefined {
    return this.#readMsrs([index])?.[0];
  }

  #readMsrs(indices: readonly number[]): bigint[] | undefined {
    const { slot } = this.#held();
    putMsrRequest(slot.argument, indices);
    const read = this.#ioctl(KVM.GET_MSRS, slot.argumentAddress, 'KVM_GET_MSRS');
    return read < indices.length ? undefined : indices.map((_, i) => msrValue(slot.argument, i));
  }

  /** False when KVM does not accept the value. */
  writeMsr(index: number, value: bigint): boolean {
    const { slot } = this.#held();
    putMsrWrite(slot.argument, index, value);
    return this.#ioctl(KVM.SET_MSRS, slot.argumentAddress, 'KVM_SET_MSRS') === 1;
  }

  cpuid(leaf: number, subleaf: number): CpuidLeaf | undefined {
    const table = this.#exchange(KVM.GET_CPUID2, 'KVM_GET_CPUID2', (argument) =>
      putU32(argument, 0, MAX_CPUID_ENTRIES),
    );
    const count = Math.min(getU32(table, 0), MAX_CPUID_ENTRIES);
    for (let i = 0; i < count; i++) {
      const entry = kvmCpuidEntry.read(table, CPUID_HEADER + i * kvmCpuidEntry.size);
      const indexed = (entry.flags & KVM_CPUID_SIGNIFICANT_INDEX) !== 0;
      if (entry.function === leaf && (!indexed || entry.index === subleaf)) return entry;
    }
    return undefined;
  }

  xcr0(): bigint {
    const xcrs = this.#exchange(KVM.GET_XCRS, 'KVM_GET_XCRS', (argument) =>
      argument.fill(0, 0, KVM_XCRS_SIZE),
    );
    const count = Math.min(getU32(xcrs, 0), 16);
    for (let i = 0; i < count; i++) {
      const { xcr, value } = kvmXcr.read(xcrs, 8 + i * kvmXcr.size);
      if (xcr === 0) return value;
    }
    return 1n;
  }

  readXsave(into: Uint8Array): void {
    const area = this.#exchange(KVM.GET_XSAVE, 'KVM_GET_XSAVE');
    into.set(area.subarray(0, KVM_XSAVE_SIZE));
  }

  writeXsave(area: Uint8Array): boolean {
    const { slot } = this.#held();
    slot.argument.set(area.subarray(0, KVM_XSAVE_SIZE));
    const [result] = this.#held().call([[SYS.ioctl, this.fd, KVM.SET_XSAVE, slot.argumentAddress]]);
    return result === 0n;
  }

  mtrrType(gpa: Gpa): number {
    const values = this.#readMsrs(MTRR_MSRS);
    if (!values) throw new KvmiError('E_UNSUPPORTED', 'KVM did not give the memory type registers');
    return mtrrType((index) => values[MTRR_MSRS.indexOf(index)]!, gpa);
  }

  inject(exception: Exception): void {
    const bytes = this.#exchange(KVM.GET_VCPU_EVENTS, 'KVM_GET_VCPU_EVENTS');
    const events = kvmVcpuEvents.read(bytes, 0);
    if (events.exception_injected || events.exception_pending) {
      this.trap = trapStop(events.exception_nr, events.exception_error_code, this.#cr2());
      return;
    }
    if (events.interrupt_injected) {
      this.trap = trapStop(events.interrupt_nr, 0, this.#cr2());
      return;
    }
    const { vector } = exception;
    const errorCode = hasErrorCode(vector) ? exception.errorCode : undefined;
    if (vector === VECTOR.PF) this.#setCr2(exception.address);
    this.#queue(bytes, vector, errorCode);
    this.trap = trapStop(vector, errorCode ?? 0, this.#cr2());
  }

  /** Queues a trap that the instruction at rip raises (int3): no TRAP event tells of it. */
  deliver(vector: number): void {
    this.#queue(this.#exchange(KVM.GET_VCPU_EVENTS, 'KVM_GET_VCPU_EVENTS'), vector);
  }

  /** Adds an exception to the events that `#exchange` has fetched. */
  #queue(bytes: Uint8Array, vector: number, errorCode?: number): void {
    kvmVcpuEvents.write(bytes, 0, {
      ...kvmVcpuEvents.read(bytes, 0),
      flags: 0,
      exception_injected: 1,
      exception_nr: vector,
      exception_has_error_code: errorCode === undefined ? 0 : 1,
      exception_error_code: errorCode ?? 0,
    });
    this.#ioctl(KVM.SET_VCPU_EVENTS, this.#held().slot.argumentAddress, 'KVM_SET_VCPU_EVENTS');
  }

  /** The linear address of the next instruction. */
  instructionPointer(): bigint {
    const thread = this.#held();
    if (!thread.synced) this.#fetchRegisters(thread);
    const base = getU64(thread.page.sregs, kvmSregs.offsetOf('cs'));
    return BigInt.asUintN(64, base + getU64(thread.page.regs, kvmRegs.offsetOf('rip')));
  }

  #cr2(): bigint {
    const thread = this.#held();
    if (!thread.synced) this.#fetchRegisters(thread);
    return getU64(thread.page.sregs, kvmSregs.offsetOf('cr2'));
  }

  #setCr2(address: bigint): void {
    const thread = this.#held();
    if (!thread.synced) this.#fetchRegisters(thread);
    putU64(thread.page.sregs, kvmSregs.offsetOf('cr2'), address);
    thread.slot.argument.set(thread.page.sregs);
    this.#ioctl(KVM.SET_SREGS, thread.slot.argumentAddress, 'KVM_SET_SREGS');
    this.#exchange(KVM.GET_VCPU_EVENTS, 'KVM_GET_VCPU_EVENTS');
  }

  /** Reads what is slow to find out and does not change. */
  learn(): void {
    if (this.tscHz > 0) return;
    const [result] = this.#held().call([[SYS.ioctl, this.fd, KVM.GET_TSC_KHZ, 0]]);
    if (result! > 0n) this.tscHz = Number(result) * 1000;
  }
}

function trapStop(vector: number, errorCode: number, address: bigint): Extract<Stop, { kind: 'trap' }> {
  return { kind: 'trap', vector, errorCode, address };
}

function failIfNegative(result: bigint, what: string): number {
  if (result < 0n) throw new SystemError(what, Number(-result));
  return Number(result);
}

/** The vCPU that is outside the guest soonest. @throws KvmiError with code E_AGAIN while there is none. */
export function nearestVcpu(vcpus: readonly KvmVcpu[]): KvmVcpu {
  const vcpu =
    vcpus.find(({ thread }) => thread?.phase === 'held') ?? vcpus.find(({ thread }) => thread) ?? vcpus[0];
  if (!vcpu) throw new KvmiError('E_AGAIN', 'the VM has no vCPU yet');
  return vcpu;
}
