import { getU16, putU16, putU32 } from '../abi/bytes.ts';
import { POLL } from '../abi/linux.ts';
import { eventLoopDescriptor, libc } from './libc.ts';

/** How long one wait lasts at most, in ms: timers of the event loop may be this late. */
const SLICE_MS = 10;
/** The same where the event loop's descriptor is not known: then nothing that it waits for ends a wait. */
const BLIND_SLICE_MS = 1;
/**
 * How often the event loop turns without waiting after something has happened: callbacks of setImmediate that it has
 * led to must not wait for a slice to end.
 */
const TURNS_AFTER_EVENT = 6;
const POLLFD_SIZE = 8;

/** A descriptor that the pump waits for. */
export interface Watch {
  /** POLL bits to wait for; 0 waits for errors only. */
  events: number;
  stop(): void;
}

interface Entry {
  readonly fd: number;
  readonly ready: (events: number) => void;
  events: number;
}

/**
 * Waits for descriptors that Node.js cannot watch (seccomp listeners, userfaultfd, sockets shared with a VMM,
 * stops of traced threads) on the main thread, without another one in between.
 *
 * While something is watched, the thread waits in poll(2) instead of in the event loop. The event loop's own
 * epoll descriptor is among those waited for, so it gets its turn as soon as it has something to do.
 */
export class Pump {
  readonly #entries = new Set<Entry>();
  readonly #afterWait = new Set<() => void>();
  #fds = new Uint8Array(16 * POLLFD_SIZE);
  #list: Entry[] = [];
  #running = false;
  #turnsLeft = TURNS_AFTER_EVENT;
  /** -1 until something is watched, and in a Node.js that does not tell it. */
  #loopFd = -1;

  /** Calls `ready` with the POLL bits that are set whenever any is. */
  watch(fd: number, events: number, ready: (events: number) => void): Watch {
    const entry: Entry = { fd, events, ready };
    this.#entries.add(entry);
    this.#start();
    const entries = this.#entries;
    return {
      get events() {
        return entry.events;
      },
      set events(value) {
        entry.events = value;
      },
      stop() {
        entries.delete(entry);
      },
    };
  }

  /** Calls `check` after every wait, whatever ended it. Returns the function that takes it back. */
  everyWait(check: () => void): () => void {
    this.#afterWait.add(check);
    this.#start();
    return () => {
      this.#afterWait.delete(check);
    };
  }

  #start(): void {
    if (this.#running) return;
    this.#running = true;
    if (this.#loopFd < 0) this.#loopFd = eventLoopDescriptor();
    process.on('SIGCHLD', this.#check);
    setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    if (this.#entries.size === 0 && this.#afterWait.size === 0) {
      this.#running = false;
      process.off('SIGCHLD', this.#check);
      return;
    }
    // Rearmed first: what a handler throws must not end the pump.
    setImmediate(this.#turn);
    this.#wait();
  };

  #wait(): void {
    const list = this.#fill();
    const count = libc().poll(this.#fds, list.length + 1, this.#timeout());
    if (count !== 0) this.#turnsLeft = TURNS_AFTER_EVENT;
    else if (this.#turnsLeft > 0) this.#turnsLeft--;
    if (count > 0) {
      for (let i = 0; i < list.length; i++) {
        const events = getU16(this.#fds, i * POLLFD_SIZE + 6);
        const entry = list[i]!;
        if (events !== 0 && this.#entries.has(entry)) entry.ready(events);
      }
    }
    this.#check();
  }

  /** Also when the event loop takes SIGCHLD between two waits: the next one would not be woken by it. */
  readonly #check = (): void => {
    for (const check of this.#afterWait) check();
  };

  #timeout(): number {
    if (this.#turnsLeft > 0) return 0;
    return this.#loopFd < 0 ? BLIND_SLICE_MS : SLICE_MS;
  }

  #fill(): Entry[] {
    const list = this.#list;
    list.length = 0;
    for (const entry of this.#entries) list.push(entry);
    const size = (list.length + 1) * POLLFD_SIZE;
    if (this.#fds.length < size) this.#fds = new Uint8Array(size * 2);
    for (let i = 0; i < list.length; i++) this.#put(i, list[i]!.fd, list[i]!.events);
    this.#put(list.length, this.#loopFd, POLL.IN);
    return list;
  }

  #put(index: number, fd: number, events: number): void {
    const at = index * POLLFD_SIZE;
    putU32(this.#fds, at, fd);
    putU16(this.#fds, at + 4, events);
    putU16(this.#fds, at + 6, 0);
  }
}

/** The pump of this process. */
export const pump = new Pump();
