import { STATE_SIZE } from '../abi/state.ts';
import { KvmiError } from '../error.ts';
import { CONTINUE, type Machine, requireCapability, type Vcpu } from '../machine/index.ts';
import { whenAborted } from './interruption.ts';

/** How long a vCPU may take to leave the guest. */
const PAUSE_TIMEOUT_MS = 30_000;

/**
 * Holds every vCPU outside the guest while `use` works, and gives it their states (536 bytes each). They run on when it
 * calls `release`, or afterwards, whatever comes of it. A machine without vCPUs, such as a dump without registers, has nothing to hold.
 *
 * @throws KvmiError with code E_UNSUPPORTED when the driver cannot pause, E_TIMEOUT when a vCPU does not leave the
 *   guest.
 */
export async function whilePaused<T>(
  machine: Machine,
  signal: AbortSignal,
  use: (states: readonly Uint8Array[], release: () => void) => Promise<T>,
): Promise<T> {
  const vcpus = machine.vcpus.filter(({ started }) => started);
  if (vcpus.length === 0) return use([], () => {});
  requireCapability(machine.capabilities, 'pause');
  const hold = new Hold(vcpus.length);
  await machine.attach({
    stop: () => CONTINUE,
    request: (vcpu) => hold.take(vcpu),
    closed: (error) => hold.fail(error ?? gone(machine)),
  });
  try {
    for (const vcpu of vcpus) Promise.resolve(vcpu.request()).catch((error: unknown) => hold.fail(error));
    await Promise.race([
      hold.complete,
      overdue(hold, machine),
      whenAborted(signal).then(() => signal.throwIfAborted()),
    ]);
    return await Promise.race([use(hold.states, hold.release), hold.failed]);
  } finally {
    hold.release();
    await machine.detach();
  }
}

/** The vCPUs that are held. */
class Hold {
  readonly #states = new Map<number, Uint8Array>();
  readonly #count: number;
  /** All of them are outside the guest. */
  readonly complete: Promise<void>;
  /** Rejects when the machine goes away. */
  readonly failed: Promise<never>;
  readonly #released: Promise<undefined>;
  #completed!: () => void;
  fail!: (error: unknown) => void;
  release!: () => void;

  constructor(count: number) {
    this.#count = count;
    this.#released = new Promise((resolve) => {
      this.release = () => resolve(undefined);
    });
    this.failed = new Promise((_resolve, reject) => {
      this.fail = reject;
    });
    this.failed.catch(() => {});
    this.complete = Promise.race([
      new Promise<void>((resolve) => {
        this.#completed = resolve;
      }),
      this.failed,
    ]);
    this.complete.catch(() => {});
  }

  /** By index. */
  get states(): Uint8Array[] {
    return [...this.#states].sort(([a], [b]) => a - b).map(([, state]) => state);
  }

  async take(vcpu: Vcpu): Promise<undefined> {
    const state = new Uint8Array(STATE_SIZE);
    try {
      await vcpu.readState(state);
      this.#states.set(vcpu.index, state);
      if (this.#states.size === this.#count) this.#completed();
    } catch (error) {
      this.fail(error);
    }
    return this.#released;
  }
}

function overdue(hold: Hold, machine: Machine): Promise<never> {
  const promise = new Promise<never>((_resolve, reject) => {
    const timer = setTimeout(() => {
      const message = `a vCPU of ${machine.name} did not leave the guest within ${PAUSE_TIMEOUT_MS / 1000} s`;
      reject(new KvmiError('E_TIMEOUT', message, { hint: 'Check that the VM answers, and try again.' }));
    }, PAUSE_TIMEOUT_MS);
    const stop = (): void => clearTimeout(timer);
    hold.complete.then(stop, stop);
  });
  promise.catch(() => {});
  return promise;
}

function gone(machine: Machine): KvmiError {
  return new KvmiError('E_GONE', `${machine.name} ended`, { hint: '`kvmi list` shows what still runs.' });
}
