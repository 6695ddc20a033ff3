/** Something that needs processor time now and then. */
export interface Task {
  /** Works for about `milliseconds`; true when there is more to do at once. */
  slice(milliseconds: number): boolean;
}

/** Time that the event loop is held at most before it serves sockets and timers again. */
const TURN = 2;
/** The same while somebody is in conversation with a machine, so that an answer does not wait for a long turn. */
const CONVERSATION_TURN = 0.2;
/** How long after an exchange the conversation is taken to last. */
const CONVERSATION = 10;
/** Every task gets a slice in this time, if slices are not shorter than the shortest. */
const ROUND = 40;
const SHORTEST_SLICE = 0.1;

/** Shares the event loop among machines: round robin, a short turn in each iteration of the loop. */
class Scheduler {
  readonly #queue: Task[] = [];
  readonly #queued = new Set<Task>();
  #immediate: NodeJS.Immediate | undefined;
  #conversationUntil = 0;

  /** Makes sure that `task` gets a slice. */
  add(task: Task): void {
    if (this.#queued.has(task)) return;
    this.#queued.add(task);
    this.#queue.push(task);
    this.#immediate ??= setImmediate(() => this.#turn());
  }

  remove(task: Task): void {
    if (!this.#queued.delete(task)) return;
    this.#queue.splice(this.#queue.indexOf(task), 1);
  }

  /** Tells that a tool is talking to a machine. */
  conversation(): void {
    this.#conversationUntil = performance.now() + CONVERSATION;
  }

  #turn(): void {
    this.#immediate = undefined;
    const begin = performance.now();
    const end = begin + (begin < this.#conversationUntil ? CONVERSATION_TURN : TURN);
    const slice = Math.max(SHORTEST_SLICE, Math.min(TURN, ROUND / this.#queue.length));
    let now = begin;
    // Each task at most once a turn, so that one that has little to do does not spin.
    for (let i = this.#queue.length; i > 0 && now < end; i--) {
      const task = this.#queue.shift();
      if (!task) break;
      this.#queued.delete(task);
      if (task.slice(Math.min(slice, end - now))) this.add(task);
      now = performance.now();
    }
    if (this.#queue.length > 0) this.#immediate ??= setImmediate(() => this.#turn());
  }
}

export const scheduler = new Scheduler();
