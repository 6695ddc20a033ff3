import type { QmpEvent } from './qmp.ts';

/** What every connection to a monitor has: those who are told of events and of its end. */
export abstract class QmpListeners {
  readonly #eventListeners = new Set<(event: QmpEvent) => void>();
  readonly #closedListeners = new Set<(error?: Error) => void>();
  #end: { readonly error: Error | undefined } | undefined;

  /** How the connection ended, when it has. */
  protected get end(): { readonly error: Error | undefined } | undefined {
    return this.#end;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#eventListeners.add(listener);
    return () => this.#eventListeners.delete(listener);
  }

  onClosed(listener: (error?: Error) => void): void {
    if (this.#end) queueMicrotask(() => listener(this.#end?.error));
    else this.#closedListeners.add(listener);
  }

  protected tell(event: QmpEvent): void {
    for (const listener of this.#eventListeners) listener(event);
  }

  /** The connection ends now, unless it has: `release` lets go of what it holds, then everybody is told. */
  protected finish(error: Error | undefined, release: () => void): void {
    if (this.#end) return;
    this.#end = { error };
    release();
    for (const listener of this.#closedListeners) listener(error);
    this.#closedListeners.clear();
  }
}
