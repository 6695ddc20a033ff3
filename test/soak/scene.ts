import type { Host } from './hosts.ts';
import type { Subject } from './subject.ts';

/** One round: who is there, and what the VM is left in. */
export class Scene {
  readonly host: Host;
  #subject: Subject;
  #wanted = 'running';
  #retired = false;
  readonly #later: (() => Promise<void>)[] = [];

  constructor(subject: Subject, host: Host) {
    this.#subject = subject;
    this.host = host;
  }

  get subject(): Subject {
    return this.#subject;
  }

  /** The state in which others have left the VM. */
  get wanted(): string {
    return this.#wanted;
  }

  /** Whether the guest is not to be used in another round. */
  get retired(): boolean {
    return this.#retired;
  }

  async pause(): Promise<void> {
    await this.#subject.monitor.execute('stop');
    this.#wanted = 'paused';
  }

  async goOn(): Promise<void> {
    await this.#subject.monitor.execute('cont');
    this.#wanted = 'running';
  }

  leave(state: string): void {
    this.#wanted = state;
  }

  retire(): void {
    this.#retired = true;
  }

  /** Another guest is the one to look at from here on. */
  replace(subject: Subject): void {
    this.#subject = subject;
    this.#wanted = 'running';
  }

  /** To be done when the host side has ended, before the guest is looked at once more. */
  later(act: () => Promise<void>): void {
    this.#later.push(act);
  }

  /** What {@link later} was told, each once. */
  afterwards(): readonly (() => Promise<void>)[] {
    return this.#later.splice(0);
  }
}
