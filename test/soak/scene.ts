import { setTimeout as sleep } from 'node:timers/promises';
import { lives } from '../../src/system/proc.ts';
import { journalOf } from '../kit/guarded.ts';
import { PATIENCE_MS } from './child.ts';
import type { Host } from './hosts.ts';
import type { Subject } from './subject.ts';

/** The state in which others have left the VM; `any`: they changed it while nobody was there to see it. */
export type Wanted = 'running' | 'paused' | 'postmigrate' | 'any';

/** One round: who is there, and what the VM is left in. */
export class Scene {
  readonly host: Host;
  #subject: Subject;
  #wanted: Wanted = 'running';
  #retired = false;
  readonly #later: (() => Promise<void>)[] = [];

  constructor(subject: Subject, host: Host) {
    this.#subject = subject;
    this.host = host;
  }

  get subject(): Subject {
    return this.#subject;
  }

  get wanted(): Wanted {
    return this.#wanted;
  }

  /** Whether the guest is not to be used in another round. */
  get retired(): boolean {
    return this.#retired;
  }

  /** Returns when kvmi has seen it: what it does not live to see it cannot leave as it was. */
  async pause(): Promise<void> {
    await this.#subject.monitor.execute('stop');
    const { pid } = this.#subject;
    const seen = () => journalOf(pid)?.running !== true;
    for (const deadline = Date.now() + PATIENCE_MS; Date.now() < deadline; await sleep(10))
      if (seen() || !lives(this.host.process)) break;
    this.#wanted = lives(this.host.process) || journalOf(pid)?.running === false ? 'paused' : 'any';
  }

  async goOn(): Promise<void> {
    await this.#subject.monitor.execute('cont');
    this.#wanted = 'running';
  }

  leave(state: Wanted): void {
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
