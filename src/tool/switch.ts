/**
 * Something of a guest that is on as long as somebody wants it: the command goes out when the first one does
 * and when the last one does not any more.
 */
export class Switch {
  readonly #send: (on: boolean) => Promise<unknown>;
  readonly #wanted = new Set<string>();
  #on = false;
  #sending: Promise<unknown> | undefined;

  constructor(send: (on: boolean) => Promise<unknown>) {
    this.#send = send;
  }

  get on(): boolean {
    return this.#on;
  }

  /**
   * Says whether `who` wants it. The command, if there is one, is sent before the call returns unless another
   * one is under way.
   */
  async set(who: string, on: boolean): Promise<void> {
    if (on) this.#wanted.add(who);
    else this.#wanted.delete(who);
    while (this.#sending) await this.#sending;
    const want = this.#wanted.size > 0;
    if (want === this.#on) return;
    this.#on = want;
    try {
      const sent = this.#send(want);
      this.#sending = sent.catch(() => {});
      await sent;
    } catch (error) {
      this.#on = false;
      this.#wanted.delete(who);
      throw error;
    } finally {
      this.#sending = undefined;
    }
  }

  /** Turns it off, whoever wants it. */
  off(): Promise<void> {
    this.#wanted.clear();
    return this.set('', false);
  }
}
