import { KvmiError } from '../../../error.ts';
import { userThreads } from '../../../system/proc.ts';
import { letGo, stopOf } from './stopped-thread.ts';
import type { Tracee } from './tracee.ts';
import type { Vmm } from './vmm.ts';

interface Stopped {
  readonly tracee: Tracee;
  /** A signal that was about to be delivered. */
  readonly signal: number;
}

/** Every thread of a VMM, stopped: nothing of it runs until `release`. */
export class StoppedThreads {
  readonly #stopped: Stopped[] = [];

  /** @throws KvmiError when a thread may not be traced; nothing is stopped then. */
  static stop(vmm: Vmm): StoppedThreads {
    const threads = new StoppedThreads();
    try {
      while (threads.#stopMore(vmm));
      return threads;
    } catch (error) {
      threads.release();
      throw error;
    }
  }

  /** False when there are no threads that run: those that it had may have created others. */
  #stopMore(vmm: Vmm): boolean {
    const known = new Set(this.#stopped.map(({ tracee }) => tracee.tid));
    const fresh = userThreads(vmm.pid).filter((tid) => !known.has(tid));
    const interrupted: Tracee[] = [];
    try {
      for (const tid of fresh) interrupted.push(vmm.trace(tid));
    } finally {
      for (const tracee of interrupted) this.#take(tracee);
    }
    return fresh.length > 0;
  }

  #take(tracee: Tracee): void {
    const event = stopOf(tracee);
    if (event.kind !== 'gone')
      this.#stopped.push({ tracee, signal: event.kind === 'signal' ? event.signal : 0 });
  }

  /** One of them, to carry out system calls in. */
  get first(): Tracee {
    const [stopped] = this.#stopped;
    if (!stopped) throw new KvmiError('E_NO_VM', 'the VMM has ended');
    return stopped.tracee;
  }

  release(): void {
    for (const { tracee, signal } of this.#stopped.splice(0)) letGo(tracee, signal);
  }
}
