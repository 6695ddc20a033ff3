import { getU32, getU64Number, putU64 } from '../../../abi/bytes.ts';
import { POLL, SYS, UFFD } from '../../../abi/linux.ts';
import { type Awaitable, then } from '../../../awaitable.ts';
import { KvmiError } from '../../../error.ts';
import { ACCESS, PAGE_SIZE, type Stop, type Trap } from '../../../machine/index.ts';
import { check, libc, SystemError, takeDescriptor } from '../../../system/libc.ts';
import { pump, type Watch } from '../../../system/pump.ts';
import type { VmmMemory } from '../slots/memory.ts';
import type { Vmm } from '../thread/vmm.ts';
import { type KvmVcpu, nearestVcpu } from '../vcpu.ts';

const O_CLOEXEC_NONBLOCK = 0x80800;
const MESSAGE_SIZE = 32;
/** How long a write by the VMM itself gets before its page is protected again, in ms. */
const VMM_WRITE_MS = 1;
/** A page stop whose virtual address is not known. */
const NO_GVA = (1n << 64n) - 1n;

type PageStop = Extract<Stop, { kind: 'page' }>;

interface TrappedPage {
  readonly gpa: number;
  readonly hva: number;
}

/** A write that a vCPU was stopped for. */
interface Fault {
  readonly page: TrappedPage;
  /** The page as it was, to tell whether KVM has carried the write out already (as its emulator does). */
  readonly before: Uint8Array;
}

/**
 * Write traps by userfaultfd's write protection.
 *
 * The descriptor is created inside the VMM and lives only here: when this process ends, however it ends, the kernel
 * removes the protection and wakes whoever waits for it.
 */
export class PageTraps {
  readonly #vmm: Vmm;
  readonly #memory: VmmMemory;
  readonly #vcpus: () => readonly KvmVcpu[];
  readonly #pages = new Map<number, TrappedPage>();
  readonly #faults = new Map<KvmVcpu, Fault>();
  #fd = -1;
  #watch: Watch | undefined;

  constructor(vmm: Vmm, memory: VmmMemory, vcpus: () => readonly KvmVcpu[]) {
    this.#vmm = vmm;
    this.#memory = memory;
    this.#vcpus = vcpus;
  }

  /** Restricts a page to `access`, of which only writing can be taken away. */
  arm({ gfn, access }: Extract<Trap, { kind: 'page' }>): Awaitable<void> {
    const gpa = gfn * PAGE_SIZE;
    const hva = this.#memory.hvaOf(gpa);
    if (hva === undefined) {
      throw new KvmiError('E_NOT_BACKED', `there is no memory at guest-physical 0x${gpa.toString(16)}`);
    }
    if ((access & ACCESS.write) !== 0) {
      this.#disarm(hva);
      return;
    }
    return then(this.#open(), () => {
      if (this.#pages.has(hva)) return;
      this.#range(UFFD.IOCTL_REGISTER, hva, [UFFD.MODE_WP, 0n], 'UFFDIO_REGISTER');
      this.#pages.set(hva, { gpa, hva });
      this.#protect(hva, true);
    });
  }

  disarm({ gfn }: Extract<Trap, { kind: 'page' }>): void {
    const hva = this.#memory.hvaOf(gfn * PAGE_SIZE);
    if (hva !== undefined) this.#disarm(hva);
  }

  #disarm(hva: number): void {
    if (!this.#pages.delete(hva)) return;
    this.#protect(hva, false);
    this.#range(UFFD.IOCTL_UNREGISTER, hva, [], 'UFFDIO_UNREGISTER');
  }

  /** Creates the descriptor inside the VMM, by way of any vCPU, and takes it over. */
  #open(): Awaitable<void> {
    if (this.#fd >= 0) return;
    const vcpu = nearestVcpu(this.#vcpus());
    return vcpu.whenHeld(() => this.#create(vcpu));
  }

  #create(vcpu: KvmVcpu): void {
    if (this.#fd >= 0) return;
    const thread = vcpu.thread!;
    const [created] = thread.call([[SYS.userfaultfd, O_CLOEXEC_NONBLOCK]]);
    if (created! < 0n) {
      throw new SystemError(
        'userfaultfd in the VMM',
        Number(-created!),
        'It needs root, CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1.',
      );
    }
    this.#fd = takeDescriptor(this.#vmm.pid, Number(created));
    thread.call([[SYS.close, created!]]);
    const api = new Uint8Array(24);
    putU64(api, 0, BigInt(UFFD.API));
    putU64(api, 8, UFFD.FEATURE_PAGEFAULT_FLAG_WP | UFFD.FEATURE_WP_HUGETLBFS_SHMEM | UFFD.FEATURE_THREAD_ID);
    check(libc().ioctlBytes(this.#fd, UFFD.IOCTL_API, api), 'UFFDIO_API with write protection');
    this.#watch = pump.watch(this.#fd, POLL.IN, () => this.serve());
  }

  #range(request: number, hva: number, rest: readonly bigint[], what: string): void {
    const argument = new Uint8Array(32);
    const words = [BigInt(hva), BigInt(PAGE_SIZE), ...rest];
    for (let i = 0; i < words.length; i++) putU64(argument, i * 8, words[i]!);
    check(libc().ioctlBytes(this.#fd, request, argument), what);
  }

  /** Protects a page, or lifts that and wakes those who wait. */
  #protect(hva: number, on: boolean): void {
    this.#range(UFFD.IOCTL_WRITEPROTECT, hva, [on ? UFFD.WRITEPROTECT_WP : 0n], 'UFFDIO_WRITEPROTECT');
  }

  /** Handles the writes that wait. */
  serve(): void {
    if (this.#fd < 0) return;
    const message = new Uint8Array(MESSAGE_SIZE);
    while (libc().read(this.#fd, message, MESSAGE_SIZE) === MESSAGE_SIZE) {
      if (message[0] !== UFFD.EVENT_PAGEFAULT) continue;
      this.#fault(Math.floor(getU64Number(message, 16) / PAGE_SIZE) * PAGE_SIZE, getU32(message, 24));
    }
  }

  /** Somebody waits to write to a page. */
  #fault(hva: number, tid: number): void {
    const page = this.#pages.get(hva);
    if (!page) {
      this.#protect(hva, false);
      return;
    }
    const vcpu = this.#writer(tid);
    if (!vcpu) {
      this.#protect(hva, false);
      setTimeout(() => this.#protectAgain(hva), VMM_WRITE_MS);
      return;
    }
    const before = new Uint8Array(PAGE_SIZE);
    this.#memory.read(page.gpa, before);
    this.#faults.set(vcpu, { page, before });
    // First the interrupt: the vCPU must not enter the guest again when it is woken.
    vcpu.thread!.kick();
    this.#protect(hva, false);
  }

  /** The vCPU whose guest writes; undefined when it is the VMM itself. */
  #writer(tid: number): KvmVcpu | undefined {
    const vcpus = this.#vcpus();
    const own = vcpus.find(({ thread }) => thread?.tracee.tid === tid);
    if (own) return this.#inRun(own) ? own : undefined;
    if (this.#vmm.hasThread(tid)) return undefined;
    // KVM asks a worker of the kernel for the page, and halts the vCPU meanwhile.
    return vcpus.find((vcpu) => vcpu.thread && !this.#faults.has(vcpu) && this.#inRun(vcpu));
  }

  #inRun({ thread, fd }: KvmVcpu): boolean {
    return thread !== undefined && this.#vmm.inRun(thread.tracee.tid, fd);
  }

  #protectAgain(hva: number): void {
    if (this.#pages.has(hva)) this.#protect(hva, true);
  }

  /** The stop of a vCPU that was held because of a write. */
  stopOf(vcpu: KvmVcpu): PageStop | undefined {
    const fault = this.#faults.get(vcpu);
    if (!fault) return undefined;
    return { kind: 'page', gva: NO_GVA, gpa: fault.page.gpa, access: ACCESS.write, view: 0 };
  }

  /**
   * After the answer to such a stop. True when the guest still has to carry the write out: it is to be stepped by
   * one instruction with the page open.
   */
  answered(vcpu: KvmVcpu, action: 'go on' | 'again'): boolean {
    const fault = this.#faults.get(vcpu);
    if (!fault) return false;
    const now = new Uint8Array(PAGE_SIZE);
    this.#memory.read(fault.page.gpa, now);
    const done = action === 'again' || Buffer.compare(now, fault.before) !== 0;
    if (done || !this.#pages.has(fault.page.hva)) {
      this.stepped(vcpu);
      return false;
    }
    return true;
  }

  /** The vCPU has carried its write out. */
  stepped(vcpu: KvmVcpu): void {
    const fault = this.#faults.get(vcpu);
    if (!fault) return;
    this.#faults.delete(vcpu);
    this.#protectAgain(fault.page.hva);
  }

  /** Opens what this process is about to write to: it would wait for itself. */
  beforeWrite(hva: number, size: number): (() => void) | undefined {
    if (this.#pages.size === 0) return undefined;
    const first = Math.floor(hva / PAGE_SIZE) * PAGE_SIZE;
    const opened: number[] = [];
    for (let page = first; page < hva + size; page += PAGE_SIZE) if (this.#pages.has(page)) opened.push(page);
    if (opened.length === 0) return undefined;
    for (const page of opened) this.#protect(page, false);
    return () => {
      for (const page of opened) this.#protectAgain(page);
    };
  }

  /** Removes every trap. */
  close(): void {
    this.#watch?.stop();
    this.#watch = undefined;
    this.#pages.clear();
    this.#faults.clear();
    if (this.#fd >= 0) libc().close(this.#fd);
    this.#fd = -1;
  }
}
