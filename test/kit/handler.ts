import type {
  Answer,
  Machine,
  MachineHandler,
  PreUnhookReason,
  Stop,
  Vcpu,
} from '../../src/machine/index.ts';
import { CONTINUE } from '../../src/machine/index.ts';

/** A machine handler for tests: what is to be done can be changed at any time. */
export class TestHandler implements MachineHandler {
  /** What stops are answered. */
  onStop: (vcpu: Vcpu, stop: Stop) => Answer | Promise<Answer> = () => CONTINUE;
  readonly preUnhooks: PreUnhookReason[] = [];
  /** Settles when the machine says that it is gone. */
  readonly gone: Promise<Error | undefined>;
  readonly #work = new Map<Vcpu, (() => Promise<void>)[]>();
  #gone: (error: Error | undefined) => void = () => {};

  constructor() {
    this.gone = new Promise((resolve) => {
      this.#gone = resolve;
    });
  }

  static async attach(machine: Machine): Promise<TestHandler> {
    const handler = new TestHandler();
    await machine.attach(handler);
    return handler;
  }

  stop(vcpu: Vcpu, stop: Stop): Answer | Promise<Answer> {
    return this.onStop(vcpu, stop);
  }

  async request(vcpu: Vcpu): Promise<undefined> {
    for (const work of this.#work.get(vcpu)?.splice(0) ?? []) await work();
  }

  preUnhook(reason: PreUnhookReason): void {
    this.preUnhooks.push(reason);
  }

  closed(error?: Error): void {
    this.#gone(error);
  }

  /** Runs `work` while the vCPU is outside the guest. */
  held<T>(vcpu: Vcpu, work: () => T | Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const list = this.#work.get(vcpu) ?? [];
      this.#work.set(vcpu, list);
      list.push(async () => {
        try {
          resolve(await work());
        } catch (error) {
          reject(error);
        }
      });
      void vcpu.request();
    });
  }
}
