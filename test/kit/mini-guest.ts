import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { createEmbeddedMachine, type EmbeddedMachine, MiniKernel } from '../../src/drivers/embedded/index.ts';

const PATIENCE_MS = 10_000;

/** The embedded machine with its mini kernel, running on the event loop. */
export class MiniGuest {
  readonly machine: EmbeddedMachine;
  readonly kernel: MiniKernel;

  private constructor(machine: EmbeddedMachine) {
    this.machine = machine;
    this.kernel = new MiniKernel(machine);
  }

  static async boot(options: { name?: string; vcpus?: number } = {}): Promise<MiniGuest> {
    const guest = new MiniGuest(createEmbeddedMachine(options));
    guest.machine.start();
    await guest.act('nop');
    return guest;
  }

  /** Asks for an action (guest/menu.inc); resolves with its result when the guest has done it. */
  async act(action: string, arg0 = 0n, arg1 = 0n): Promise<bigint> {
    const before = this.kernel.done();
    this.kernel.post(action, arg0, arg1);
    await this.#until(() => this.kernel.done() !== before, `the guest to do ${action}`);
    return this.kernel.result();
  }

  /** The guest's clock moves and it does what it is asked for. */
  async expectAlive(): Promise<void> {
    const ticks = this.kernel.read('ticks');
    await this.#until(() => this.kernel.read('ticks') > ticks + 2n, "the guest's clock to move");
    await this.act('nop');
  }

  async #until(holds: () => boolean, what: string): Promise<void> {
    const deadline = performance.now() + PATIENCE_MS;
    while (!holds()) {
      assert.ok(performance.now() < deadline, `waited ${PATIENCE_MS} ms for ${what}`);
      await turn();
    }
  }
}
