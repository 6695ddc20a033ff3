import { PTRACE_O, SECCOMP, SYS } from '../../../abi/linux.ts';
import { messageOf } from '../../../error.ts';
import { PAGE_SIZE } from '../../../machine/address.ts';
import { libc, SystemError, takeDescriptor } from '../../../system/libc.ts';
import { kvmDescriptors, readText, statusNumber, userThreads } from '../../../system/proc.ts';
import { ProcessMemory } from '../../../system/process-memory.ts';
import { KernelView } from '../slots/memslots.ts';
import type { VmFile } from '../slots/vm-file.ts';
import { Agent } from './agent.ts';
import { RunSearch } from './run-search.ts';
import { findSyscallSite, type SyscallSite } from './syscall-site.ts';
import { Tracee } from './tracee.ts';

const READ_WRITE = 3;
const SHARED = 1;

let kernelView: KernelView | string | undefined;

/** The view of the kernel that all machines of this process share, or why there is none. */
export function kernel(): KernelView | string {
  if (kernelView === undefined) {
    try {
      kernelView = new KernelView();
    } catch (error) {
      kernelView = messageOf(error);
    }
  }
  return kernelView;
}

/** The process that a VM belongs to: its memory, its threads, and our agent in it. */
export class Vmm {
  readonly pid: number;
  readonly file: VmFile;
  readonly memory: ProcessMemory;
  readonly #search = new RunSearch();
  #site: SyscallSite | undefined;
  agent: Agent | undefined;

  readonly liftFilters: boolean;

  constructor(file: VmFile, liftFilters = false) {
    this.liftFilters = liftFilters;
    this.pid = file.pid;
    this.file = file;
    this.memory = new ProcessMemory(file.pid);
  }

  get site(): SyscallSite {
    this.#site ??= findSyscallSite(this.pid, this.memory);
    return this.#site;
  }

  /** The agent; put there by way of `tracee`, which is stopped, when it is not there yet. */
  agentVia(tracee: Tracee): Agent {
    this.agent ??= Agent.install(this.pid, tracee, this.site);
    return this.agent;
  }

  /** The descriptors of this VM's vCPUs, in the order of their creation. */
  vcpuDescriptors(): number[] {
    const { vms, vcpus } = kvmDescriptors(this.pid);
    const fds = vcpus.map(({ fd }) => fd);
    if (vms.length <= 1) return fds;
    const view = kernel();
    if (typeof view !== 'string') {
      const vm = view.vm(this.file.held);
      return fds.filter((fd) => this.#withVcpu(fd, (held) => view.vcpu(held).vm) === vm);
    }
    // Descriptors are given out in order: a VM's vCPUs lie between it and the next VM.
    const own = this.file.ownersDescriptor() ?? 0;
    const next = vms.find((fd) => fd > own) ?? Number.POSITIVE_INFINITY;
    return fds.filter((fd) => fd > own && fd < next);
  }

  #withVcpu<T>(fd: number, use: (held: number) => T): T | undefined {
    let held: number;
    try {
      held = takeDescriptor(this.pid, fd);
    } catch {
      return undefined;
    }
    try {
      return use(held);
    } finally {
      libc().close(held);
    }
  }

  /** The thread that runs a vCPU, if it can be told now. */
  threadOf(vcpuFd: number): number | undefined {
    const threads = userThreads(this.pid);
    const view = kernel();
    if (typeof view !== 'string') {
      const tid = this.#withVcpu(vcpuFd, (held) => view.vcpu(held).tid);
      if (tid !== undefined && threads.includes(tid)) return tid;
    }
    const waiting = threads.find((tid) => inRun(this.pid, tid, vcpuFd));
    if (waiting !== undefined || typeof view !== 'string') return waiting;
    return this.#search.find(this.pid, threads, vcpuFd);
  }

  /** Whether a vCPU has an exit to complete; undefined when it cannot be told. */
  exitPending(vcpuFd: number): boolean | undefined {
    const view = kernel();
    return typeof view === 'string' ? undefined : this.#withVcpu(vcpuFd, (held) => view.exitPending(held));
  }

  /** Whether it has put seccomp filters on any of its threads. */
  get filtered(): boolean {
    return userThreads(this.pid).some((tid) => statusNumber(tid, 'Seccomp') === SECCOMP.MODE_FILTER);
  }

  hasThread(tid: number): boolean {
    return readText(`/proc/${this.pid}/task/${tid}/comm`) !== undefined;
  }

  /** Whether a thread waits inside KVM_RUN of a vCPU. */
  inRun(tid: number, vcpuFd: number): boolean {
    return inRun(this.pid, tid, vcpuFd);
  }

  /**
   * Starts tracing a thread; its first stop is asked for. A filter with which a VMM forbids itself system calls is
   * lifted for the thread while it is traced; the filter of `kvmi run` is not. With `clones`, threads that it creates are
   * traced, too.
   */
  trace(tid: number, clones = false): Tracee {
    const filtered = this.liftFilters && statusNumber(tid, 'Seccomp') === SECCOMP.MODE_FILTER;
    const options = PTRACE_O.SYSGOOD | (filtered ? PTRACE_O.SUSPEND_SECCOMP : 0);
    const tracee = Tracee.seize(tid, options, clones);
    tracee.interrupt();
    return tracee;
  }

  /** Maps the kvm_run page of a vCPU for the agent, by way of a stopped thread. */
  mapRunPage(tracee: Tracee, vcpuFd: number): number {
    const result = tracee.inject(
      this.site.instruction,
      SYS.mmap,
      0,
      PAGE_SIZE,
      READ_WRITE,
      SHARED,
      vcpuFd,
      0,
    );
    if (result < 0n) throw new SystemError('mapping the kvm_run page in the VMM', Number(-result));
    return Number(result);
  }

  unmapRunPage(tracee: Tracee, address: number): void {
    tracee.inject(this.site.instruction, SYS.munmap, address, PAGE_SIZE);
  }

  /** Takes the agent out again by way of a stopped thread, when there is one. */
  removeAgent(tracee: Tracee | undefined): void {
    this.agent?.remove(tracee, this.site);
    this.agent = undefined;
  }

  close(): void {
    this.memory.close();
  }
}

/** Whether a thread waits inside KVM_RUN of a vCPU; not known while it runs. */
function inRun(pid: number, tid: number, vcpuFd: number): boolean {
  const [nr, fd, request] = (readText(`/proc/${pid}/task/${tid}/syscall`) ?? '').split(' ');
  return nr === '16' && Number(fd) === vcpuFd && request === '0xae80';
}
