import { STATE_SIZE } from '../abi/state.ts';
import { type Deferred, deferred } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { requireCapability } from './capabilities.ts';
import type { Machine } from './machine.ts';
import { CONTINUE } from './stops.ts';
import type { Vcpu } from './vcpu.ts';

/** How long a vCPU may take to leave the guest. */
const PAUSE_TIMEOUT_MS = 30_000;

/**
 * Holds every vCPU outside the guest while `use` works, and gives it their states (536 bytes each) by index. They run on
 * when it calls `release`, or afterwards, whatever comes of it. A machine without vCPUs, such as a dump without registers,
 * has nothing to hold. Nobody else may be attached.
 *
 * @param signal ends the wait for the vCPUs; `use` has to look at it on its own.
 * @throws KvmiError with code E_UNSUPPORTED when the driver cannot pause, E_TIMEOUT when a vCPU does not leave the
 *   guest, E_GONE when the machine ends meanwhile.
 */
export async function whilePaused<T>(
  machine: Machine,
  signal: AbortSignal,
  use: (states: readonly Uint8Array[], release: () => void) => Promise<T>,
): Promise<T> {
  const vcpus = machine.vcpus.filter(({ started }) => started);
  if (vcpus.length === 0) return use([], () => {});
  requireCapability(machine.capabilities, 'pause');
  const states = new Map<number, Uint8Array>();
  const held = deferred<void>();
  const failed = deferred<never>();
  failed.promise.catch(() => {});
  const released = deferred<undefined>();
  const release = (): void => released.resolve(undefined);
  const take = async (vcpu: Vcpu): Promise<undefined> => {
    const state = new Uint8Array(STATE_SIZE);
    try {
      await vcpu.readState(state);
      states.set(vcpu.index, state);
      if (states.size === vcpus.length) held.resolve();
    } catch (error) {
      failed.reject(error);
    }
    return released.promise;
  };
  await machine.attach({
    stop: () => CONTINUE,
    request: take,
    closed: (error) => failed.reject(error ?? gone(machine)),
  });
  try {
    const disarm = failInTime(failed, machine, signal);
    try {
      for (const vcpu of vcpus) Promise.resolve(vcpu.request()).catch(failed.reject);
      await Promise.race([held.promise, failed.promise]);
    } finally {
      disarm();
    }
    const ordered = [...states].sort(([a], [b]) => a - b).map(([, state]) => state);
    return await Promise.race([use(ordered, release), failed.promise]);
  } finally {
    release();
    await machine.detach();
  }
}

/** Fails when it takes too long or `signal` is aborted, until the result is called. */
function failInTime(failed: Deferred<never>, machine: Machine, signal: AbortSignal): () => void {
  const abort = (): void => failed.reject(signal.reason);
  const timer = setTimeout(() => failed.reject(overdue(machine)), PAUSE_TIMEOUT_MS);
  signal.addEventListener('abort', abort);
  if (signal.aborted) abort();
  return () => {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  };
}

function overdue({ name }: Machine): KvmiError {
  const message = `a vCPU of ${name} did not leave the guest within ${PAUSE_TIMEOUT_MS / 1000} s`;
  return new KvmiError('E_TIMEOUT', message, { hint: 'Check that the VM answers, and try again.' });
}

function gone({ name }: Machine): KvmiError {
  return new KvmiError('E_GONE', `${name} ended`, { hint: '`kvmi list` shows what still runs.' });
}
