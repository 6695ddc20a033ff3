import { KvmiError } from '../error.ts';
import type { Walk } from './walk.ts';

/** A list of plain objects. `partial` when something is missing, and `reasons` says what. */
export interface Rows<T> {
  readonly rows: T[];
  readonly partial: boolean;
  readonly reasons: readonly string[];
}

export interface QueryOptions {
  /** Rows to answer at most; 262,144 unless told. */
  readonly limit?: number;
  /** When to stop and answer what there is, in milliseconds; 10,000 unless told. */
  readonly timeoutMs?: number;
}

const DEFAULT_LIMIT = 262_144;
const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_REASONS = 20;

/** One question to a guest: how much may be answered, how long it may take, and what went wrong on the way. */
export class Question {
  readonly limit: number;
  readonly #deadline: number;
  readonly #reasons = new Set<string>();

  constructor(options: QueryOptions = {}) {
    this.limit = options.limit ?? DEFAULT_LIMIT;
    this.#deadline = performance.now() + (options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  }

  get reasons(): readonly string[] {
    return [...this.#reasons];
  }

  /** What is left of it, for another question of the same kind. */
  get rest(): QueryOptions {
    return { limit: this.limit, timeoutMs: this.#deadline - performance.now() };
  }

  /** Notes that something is missing. */
  note(reason: string): void {
    if (this.#reasons.size < MAX_REASONS) this.#reasons.add(reason);
    else if (this.#reasons.size === MAX_REASONS) this.#reasons.add('and more');
  }

  /** Whether there is time left; notes it when there is not. */
  hasTime(): boolean {
    if (performance.now() < this.#deadline) return true;
    this.note('stopped when the time was up');
    return false;
  }

  /** The items, as long as there is time. */
  *timely<T>(items: Iterable<T>): IterableIterator<T> {
    for (const item of items) {
      if (!this.hasTime()) return;
      yield item;
    }
  }

  /** Whether one more row fits, when there are `count`; notes it when it does not. */
  hasRoom(count: number, what: string): boolean {
    if (count < this.limit) return true;
    this.note(`more than ${this.limit} ${what}`);
    return false;
  }

  /** The walk's value; when it fails because of what is in guest memory, a note and `otherwise`. */
  *attempt<T>(what: string, walk: Walk<T>, otherwise: T): Walk<T> {
    try {
      return yield* walk;
    } catch (error) {
      if (!(error instanceof KvmiError)) throw error;
      this.note(`${what}: ${error.message}`);
      return otherwise;
    }
  }

  rows<T>(rows: T[]): Rows<T> {
    return { rows, partial: this.#reasons.size > 0, reasons: this.reasons };
  }
}
