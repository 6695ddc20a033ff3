import { isPending } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import type { EventName } from '../wire/index.ts';
import { AsyncQueue } from './async-queue.ts';
import type { Answer, AnyEvent, EventHandler, GuestEvent } from './event.ts';
import { answerHarmlessly } from './harmless.ts';

/** Takes an event for a helper such as breakpoints; false leaves it to the next one. */
type Claim = (event: GuestEvent) => boolean;
type AnyHandler = EventHandler<EventName>;

/** Events that nobody has to answer pile up to this many in an iterator; more are dropped. */
const MAX_QUEUED = 16_384;

/**
 * Finds who decides about an event: a helper that claims it, the handler for its name, the loop over
 * `events()`, or nobody, which is answered harmlessly.
 *
 * A handler that decides at once is answered in the same call.
 */
export class Dispatcher {
  readonly #report: (error: Error) => void;
  readonly #claims = new Map<EventName, Claim[]>();
  readonly #handlers = new Map<EventName, AnyHandler>();
  #queue: AsyncQueue<AnyEvent> | undefined;
  /** Given to a loop. */
  readonly #iterated = new WeakSet<GuestEvent>();

  constructor(report: (error: Error) => void) {
    this.#report = report;
  }

  /** Offers events to `claim` before anybody else. The result takes it back. */
  claim(name: EventName, claim: Claim): () => void {
    const claims = this.#claims.get(name) ?? [];
    this.#claims.set(name, [claim, ...claims]);
    return () => {
      const rest = this.#claims.get(name)!.filter((other) => other !== claim);
      if (rest.length > 0) this.#claims.set(name, rest);
      else this.#claims.delete(name);
    };
  }

  on<N extends EventName>(name: N, handler: EventHandler<N>): () => void {
    if (this.#handlers.has(name)) {
      throw new KvmiError('E_BUSY', `${name} events have a handler already`, {
        hint: 'Call the function that `on` returned to remove it first.',
      });
    }
    this.#handlers.set(name, handler as unknown as AnyHandler);
    return () => {
      if (this.#handlers.get(name) === (handler as unknown as AnyHandler)) this.#handlers.delete(name);
    };
  }

  /** `open` tells which events are not answered yet, for the end of the loop. */
  events(open: () => Iterable<GuestEvent>): AsyncIterableIterator<AnyEvent> {
    if (this.#queue) {
      throw new KvmiError('E_BUSY', 'somebody iterates over the events of this guest already', {
        hint: 'Use `guest.on` for some of them, or leave the other loop first.',
      });
    }
    this.#queue = new AsyncQueue((rest) => {
      this.#queue = undefined;
      for (const event of rest) answerHarmlessly(event);
      for (const event of open()) if (this.#iterated.has(event)) answerHarmlessly(event);
    });
    return this.#queue;
  }

  /** A promise when a handler decides later. It never rejects. */
  dispatch(event: GuestEvent): PromiseLike<void> | undefined {
    const claims = this.#claims.get(event.name);
    if (claims) for (const claim of claims) if (claim(event)) return;
    return this.decide(event);
  }

  /** The same for an event that no helper takes. */
  decide(event: GuestEvent): PromiseLike<void> | undefined {
    const handler = this.#handlers.get(event.name);
    if (handler) return this.#handle(handler, event);
    if (this.#queue && this.#queue.length < MAX_QUEUED) {
      this.#iterated.add(event);
      this.#queue.push(event as AnyEvent);
    } else {
      answerHarmlessly(event);
    }
    return;
  }

  #handle(handler: AnyHandler, event: GuestEvent): PromiseLike<void> | undefined {
    try {
      const answer = handler(event);
      if (!isPending(answer)) {
        this.#answer(event, answer);
        return;
      }
      return answer.then(
        (later) => this.#answer(event, later),
        (error) => this.#failed(event, error),
      );
    } catch (error) {
      this.#failed(event, error);
      return;
    }
  }

  // biome-ignore lint/suspicious/noConfusingVoidType: what handlers return
  #answer(event: GuestEvent, answer: Answer<EventName> | void): void {
    try {
      if (answer === undefined) answerHarmlessly(event);
      else if (typeof answer === 'string') event.reply(answer);
      else event.reply(answer.action, answer);
    } catch (error) {
      this.#failed(event, error);
    }
  }

  #failed(event: GuestEvent, cause: unknown): void {
    const error = cause instanceof Error ? cause : new Error(String(cause));
    this.#report(
      new KvmiError('E_HANDLER', `the handler of ${event.name} events failed: ${error.message}`, { cause }),
    );
    answerHarmlessly(event);
  }

  /** Ends the loop over `events()`. */
  end(): void {
    this.#queue?.end();
  }
}
