import { attempt, type Deferred, deferred } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import type { Connection } from './connection.ts';
import { isNotStarted } from './not-started.ts';

/** What a vCPU is outside the guest for until it is answered: an event, or the hit of a probe. */
export interface OpenStop {
  readonly name: string;
  /** Lets the vCPU go on, as if nobody had wanted to know. */
  reply(): boolean;
}

/**
 * Whether a vCPU is outside the guest, and what keeps it there.
 *
 * A vCPU is stopped while one of its events, or the hit of a probe, is not answered. Whoever holds it makes answers wait until the
 * last hold is released; if no event is open, the vCPU is asked for one (PAUSE).
 */
export class VcpuStop {
  readonly #connection: Connection;
  readonly #index: number;
  #open: OpenStop | undefined;
  #holds = 0;
  /** The answer to the open event, while the vCPU is held. */
  #answer: (() => void) | undefined;
  /** PAUSE events that were asked for and have not come. */
  #pauses = 0;
  #arrival: Deferred<void> | undefined;
  #stopping: Promise<void> | undefined;
  /** What to do at the next event, before it is answered. */
  #atStop: (() => unknown)[] = [];

  constructor(connection: Connection, index: number) {
    this.#connection = connection;
    this.#index = index;
  }

  /** What waits for an answer. */
  get open(): OpenStop | undefined {
    return this.#open;
  }

  /** An event came. True when it is a PAUSE that a hold asked for, which is answered here. */
  opened(event: OpenStop): boolean {
    this.#open = event;
    this.#arrival?.resolve();
    if (this.#atStop.length > 0) for (const run of this.#atStop.splice(0)) run();
    if (event.name !== 'PAUSE' || this.#pauses === 0) return false;
    this.#pauses--;
    event.reply();
    return true;
  }

  /** Calls `run` as soon as the vCPU is outside the guest: for a vCPU that was not started, before its first instruction. */
  async atNextStop(run: () => unknown): Promise<void> {
    if (this.#open) {
      run();
      return;
    }
    this.#atStop.push(run);
    if (this.#pauses === 0) await this.#requestPause();
  }

  /** Whether somebody keeps the vCPU stopped. */
  get held(): boolean {
    return this.#holds > 0;
  }

  /** Calls `send`, which answers what is open, or keeps it while the vCPU is held. False when nobody would get it. */
  answer(send: () => void): boolean {
    if (this.#connection.ended) return false;
    if (this.#holds > 0) this.#answer = send;
    else this.#send(send);
    return true;
  }

  #send(send: () => void): void {
    this.#answer = undefined;
    this.#open = undefined;
    send();
  }

  /**
   * Stops the vCPU and keeps it stopped until the result is called. A vCPU that was not started yet counts as
   * stopped.
   *
   * @throws KvmiError with code E_TIMEOUT when it does not stop: the VM itself may be stopped.
   */
  async hold(): Promise<() => void> {
    this.#holds++;
    try {
      if (!this.#open) await this.#stop();
    } catch (error) {
      this.#release();
      throw error;
    }
    let held = true;
    return () => {
      if (held) this.#release();
      held = false;
    };
  }

  #release(): void {
    if (--this.#holds === 0 && this.#answer) this.#send(this.#answer);
  }

  /** Answers what is open, whoever holds the vCPU. */
  releaseAll(): void {
    if (this.#answer) this.#send(this.#answer);
    this.#holds = 0;
    this.#open?.reply();
  }

  #stop(): Promise<void> {
    this.#stopping ??= this.#pause().finally(() => {
      this.#stopping = undefined;
      this.#arrival = undefined;
    });
    return this.#stopping;
  }

  async #pause(): Promise<void> {
    const { timeout } = this.#connection;
    const arrival = deferred<void>();
    arrival.promise.catch(() => {});
    this.#arrival = arrival;
    const timer = setTimeout(() => arrival.reject(this.#timeoutError(timeout)), timeout);
    const forget = this.#connection.onEnd(() => arrival.reject(this.#closedError()));
    try {
      if (this.#pauses === 0) await this.#requestPause();
      if (!this.#open) this.#watchStarted(arrival);
      await arrival.promise;
    } finally {
      clearTimeout(timer);
      forget();
    }
  }

  async #requestPause(): Promise<void> {
    this.#pauses++;
    try {
      await this.#connection.requests.send('VM_PAUSE_VCPU', { wait: 0, vcpu: this.#index }, this.#index);
    } catch (error) {
      this.#pauses--;
      throw error;
    }
  }

  /** A vCPU that was not started answers no event; its commands say so. */
  #watchStarted(arrival: Deferred<void>): void {
    void attempt<unknown>(
      () => this.#connection.requests.send('VCPU_GET_INFO', {}, this.#index),
      (error) => {
        if (isNotStarted(error)) arrival.resolve();
      },
    );
  }

  #closedError(): KvmiError {
    return new KvmiError('E_CLOSED', `the connection closed before vCPU ${this.#index} stopped`);
  }

  #timeoutError(timeout: number): KvmiError {
    return new KvmiError('E_TIMEOUT', `vCPU ${this.#index} did not stop within ${timeout} ms`, {
      hint: 'A vCPU stops only while the VM runs: resume the VM if it is stopped.',
      data: { vcpu: this.#index },
    });
  }
}
