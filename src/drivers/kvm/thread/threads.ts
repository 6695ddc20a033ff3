import { getU64, putU64 } from '../../../abi/bytes.ts';
import { ERRNO } from '../../../abi/errno.ts';
import { KvmiError } from '../../../error.ts';
import { libc, SystemError } from '../../../system/libc.ts';
import type { KvmVcpu } from '../vcpu.ts';
import { SLOT } from './agent-code.ts';
import { isConfined } from './confinement.ts';
import { Dragnet } from './dragnet.ts';
import { Linger } from './linger.ts';
import { RunPage } from './run-page.ts';
import type { StopEvent, Tracee } from './tracee.ts';
import { VcpuThread } from './vcpu-thread.ts';
import type { Vmm } from './vmm.ts';

/** How often the thread of a vCPU is looked for that has to be traced, in ms. */
const SEARCH_INTERVAL_MS = 2;
/** How long vCPUs are waited for that are to leave the guest all at once, in ms. */
const STILL_TIMEOUT_MS = 2000;

/** The threads that run the vCPUs of a VM: found when they are needed, traced from then on. */
export class Threads {
  readonly linger = new Linger();
  /** The agent must not be left alone in any of them: see {@link isConfined}. */
  confined = false;
  readonly #vmm: Vmm;
  readonly #failed: (error: unknown) => void;
  readonly #traced = new Set<KvmVcpu>();
  /** Threads that were asked to stop and are to be traced from then on. */
  readonly #joining = new Map<KvmVcpu, Tracee>();
  readonly #searching = new Map<KvmVcpu, NodeJS.Timeout>();
  /** Out while a vCPU is searched for. */
  readonly #net: Dragnet;

  constructor(vmm: Vmm, failed: (error: unknown) => void) {
    this.#vmm = vmm;
    this.#net = new Dragnet(vmm);
    this.#failed = failed;
  }

  /** Runs something that traces. */
  guarded(run: () => void): void {
    try {
      run();
    } catch (error) {
      this.#failed(error);
    }
  }

  /** Looks for the thread of a vCPU until it is found, or until nobody needs it any more. */
  search(vcpu: KvmVcpu): void {
    if (this.#joining.has(vcpu) || this.#searching.has(vcpu)) return;
    const tid = this.#vmm.threadOf(vcpu.fd);
    if (tid !== undefined && !this.#net.has(tid)) {
      this.guarded(() => this.#joining.set(vcpu, this.#vmm.trace(tid)));
      return;
    }
    const again = setTimeout(() => {
      this.#searching.delete(vcpu);
      if (vcpu.wanted || vcpu.armed) this.search(vcpu);
      else this.#haul();
    }, SEARCH_INTERVAL_MS);
    this.#searching.set(vcpu, again);
    this.guarded(() => this.#net.put());
  }

  /** The thread of a vCPU that is searched for makes KVM_RUN its next instruction. */
  #caught(fd: number, tracee: Tracee, event: StopEvent): void {
    const vcpu = [...this.#searching.keys()].find((searched) => searched.fd === fd)!;
    clearTimeout(this.#searching.get(vcpu));
    this.#searching.delete(vcpu);
    this.#haul();
    this.#join(vcpu, tracee, event);
  }

  #haul(): void {
    if (this.#searching.size === 0 && this.#net.cast) this.guarded(() => this.#net.haul());
  }

  /** Handles what the threads have to tell. */
  poll(): void {
    for (const [vcpu, tracee] of this.#joining) this.#poll(vcpu, tracee);
    if (this.#net.cast) this.guarded(() => this.#pollNet());
    for (const { thread } of this.#traced) this.#pollThread(thread);
    this.linger.wait(() => {
      for (const { thread } of this.#traced) if (this.#pollThread(thread)) return true;
      return false;
    });
  }

  #pollNet(): void {
    this.#net.poll(
      (fd) => [...this.#searching.keys()].some((vcpu) => vcpu.fd === fd),
      (fd, tracee, event) => this.#caught(fd, tracee, event),
    );
  }

  #pollThread(thread: VcpuThread | undefined): boolean {
    const event = thread?.tracee.poll();
    if (event) this.guarded(() => handle(thread!, event));
    return event !== undefined;
  }

  /** The first stop of a thread: from now on it is a vCPU's. */
  #poll(vcpu: KvmVcpu, tracee: Tracee): void {
    const event = tracee.poll();
    if (!event) return;
    if (event.kind === 'gone') {
      this.#joining.delete(vcpu);
      this.search(vcpu);
    } else if (event.kind === 'interrupt' || event.kind === 'group-stop') {
      this.#joining.delete(vcpu);
      this.guarded(() => this.#join(vcpu, tracee, event));
    } else {
      tracee.cont(event.kind === 'signal' ? event.signal : 0);
    }
  }

  #join(vcpu: KvmVcpu, tracee: Tracee, event: StopEvent): void {
    const { pid } = this.#vmm;
    const { fd } = vcpu;
    const confined = this.#checkConfinement(tracee);
    const slot = this.#vmm.agentVia(tracee).slot(vcpu.index);
    const page = new RunPage(pid, fd);
    putU64(slot.bytes, SLOT.runPage, BigInt(this.#vmm.mapRunPage(tracee, fd)));
    const thread = new VcpuThread(vcpu, { tracee, slot, page, pid, fd, confined });
    this.#traced.add(vcpu);
    vcpu.adopt(thread);
    thread.stopped(event);
  }

  #checkConfinement(tracee: Tracee): boolean {
    const confined = isConfined(tracee, !this.#vmm.liftFilters);
    if (confined && !this.#vmm.liftFilters) {
      tracee.detach();
      throw new KvmiError('E_UNSUPPORTED', 'a seccomp filter forbids the VMM what introspection takes', {
        hint: 'Start the VMM without kvmi run, which needs a filter of its own, and hook it with kvmi attach.',
      });
    }
    this.confined ||= confined;
    return confined;
  }

  /**
   * Runs something while none of the vCPUs that are traced is in the guest. `serve` lets threads come back that wait for
   * this process.
   */
  still<T>(run: () => T, serve: () => void): T {
    const running = [...this.#traced].flatMap(({ thread }) =>
      thread && !thread.tracee.stopped && thread.phase !== 'gone' ? thread : [],
    );
    const stopped: (() => void)[] = [];
    const deadline = performance.now() + STILL_TIMEOUT_MS;
    for (const { tracee } of running) tracee.interrupt();
    try {
      for (const thread of running) {
        let event = thread.tracee.poll();
        for (; !event && performance.now() < deadline; event = thread.tracee.poll()) {
          serve();
          libc().schedYield();
        }
        if (!event) throw new KvmiError('E_TIMEOUT', `thread ${thread.tracee.tid} of a vCPU does not stop`);
        const reported = event;
        stopped.push(() => thread.stopped(reported));
      }
      return run();
    } finally {
      for (const goOn of stopped) this.guarded(goOn);
    }
  }

  gone(vcpu: KvmVcpu): void {
    this.#traced.delete(vcpu);
  }

  /**
   * Takes every thread out of the agent and detaches from it; the last one takes the agent away. `first` is done in
   * one that is held, if any can be, and `second` after it in any case.
   */
  letGo(first: ((thread: VcpuThread) => void) | undefined, second: () => void): void {
    const threads = [...this.#traced].flatMap(({ thread }) => thread ?? []);
    const last = threads.at(-1);
    const one = threads.find(({ phase }) => phase === 'held') ?? threads[0];
    asFarAsPossible(() => first && one?.holdNow() && first(one));
    second();
    for (const thread of threads) {
      asFarAsPossible(() => this.#letGo(thread, thread === last));
      asFarAsPossible(() => thread.tracee.reap());
    }
    for (const tracee of this.#joining.values()) {
      asFarAsPossible(() => tracee.release());
      asFarAsPossible(() => tracee.reap());
    }
  }

  #letGo(thread: VcpuThread, last: boolean): void {
    if (!thread.bringHome()) return;
    this.#vmm.unmapRunPage(thread.tracee, Number(getU64(thread.slot.bytes, SLOT.runPage)));
    if (last) this.#vmm.removeAgent(thread.tracee);
    thread.letGo();
  }

  /** Threads are no longer touched. */
  forget(): void {
    asFarAsPossible(() => this.#net.haul());
    for (const timer of this.#searching.values()) clearTimeout(timer);
    this.#searching.clear();
    this.#joining.clear();
    for (const vcpu of this.#traced) {
      vcpu.thread?.page.close();
      vcpu.thread = undefined;
    }
    this.#traced.clear();
  }
}

/** A thread that is killed while it is stopped, as by execve in another one, tells nothing more but its end. */
function handle(thread: VcpuThread, event: StopEvent): void {
  try {
    thread.stopped(event);
  } catch (error) {
    if (!(error instanceof SystemError) || error.errno !== ERRNO.ESRCH) throw error;
    const end = thread.tracee.wait();
    if (end.kind !== 'gone') throw error;
    thread.stopped(end);
  }
}

/** For the steps of leaving: a VMM that is going needs nothing restored, and the other steps are made all the same. */
function asFarAsPossible(step: () => unknown): void {
  try {
    step();
  } catch {
    // There is nobody to tell.
  }
}
