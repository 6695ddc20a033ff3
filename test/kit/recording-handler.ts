import type { Awaitable } from '../../src/awaitable.ts';
import {
  type Answer,
  CONTINUE,
  type MachineHandler,
  type PreUnhookReason,
  type Stop,
  type Vcpu,
} from '../../src/machine/index.ts';

/** A stop as it was when it was reported: drivers reuse their objects. */
export function snapshot(stop: Stop): Stop {
  const fields: Record<string, unknown> = {};
  for (let at: object = stop; at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    for (const name of Object.getOwnPropertyNames(at)) {
      const value = (stop as unknown as Record<string, unknown>)[name];
      if (typeof value !== 'function' && !/(Lo|Hi)$/.test(name)) fields[name] = value;
    }
  }
  return fields as unknown as Stop;
}

/** A handler that keeps what it is told, and answers as `answer` says: continue, unless it is set. */
export class RecordingHandler implements MachineHandler {
  readonly stops: Stop[] = [];
  readonly requests: number[] = [];
  readonly created: number[] = [];
  readonly reasons: PreUnhookReason[] = [];
  closedWith: Error | 'closed' | undefined;
  answer: (vcpu: Vcpu, stop: Stop) => Awaitable<Answer> = () => CONTINUE;
  onRequest: (vcpu: Vcpu) => Awaitable<'crash' | undefined> = () => undefined;

  get kinds(): string[] {
    return this.stops.map(({ kind }) => kind);
  }

  stop(vcpu: Vcpu, stop: Stop): Awaitable<Answer> {
    this.stops.push(snapshot(stop));
    return this.answer(vcpu, stop);
  }

  request(vcpu: Vcpu): Awaitable<'crash' | undefined> {
    this.requests.push(vcpu.index);
    return this.onRequest(vcpu);
  }

  vcpuCreated(vcpu: Vcpu): void {
    this.created.push(vcpu.index);
  }

  preUnhook(reason: PreUnhookReason): void {
    this.reasons.push(reason);
  }

  closed(error?: Error): void {
    this.closedWith = error ?? 'closed';
  }
}
