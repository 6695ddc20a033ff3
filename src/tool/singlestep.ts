import { type Awaitable, attempt, deferred, then } from '../awaitable.ts';
import type { GuestEvent } from './event.ts';
import type { Guest } from './guest.ts';
import type { GuestVcpu } from './vcpu.ts';

/** Called after each instruction. False ends the single-stepping. */
// biome-ignore lint/suspicious/noConfusingVoidType: going on is the usual answer
export type StepHandler = (event: GuestEvent<'SINGLESTEP'>) => Awaitable<boolean | void>;

const WHO = 'singlestep';

/** See `Guest.singlestep`. */
export async function singlestep(guest: Guest, vcpu: GuestVcpu, each: StepHandler): Promise<void> {
  const finished = deferred<void>();
  const unclaim = guest.dispatcher.claim('SINGLESTEP', (event) => {
    if (event.vcpu !== vcpu) return false;
    const go = attempt(
      () => each(event as GuestEvent<'SINGLESTEP'>),
      (error) => {
        finished.reject(error);
        return false;
      },
    );
    void then(go, (more) => {
      if (more === false) stop();
      event.reply();
    });
    return true;
  });
  const stop = (): void => {
    unclaim();
    vcpu.switchSinglestep(false, WHO).then(finished.resolve, finished.reject);
  };
  try {
    await vcpu.switchSinglestep(true, WHO);
  } catch (error) {
    unclaim();
    throw error;
  }
  const forget = guest.connection.onEnd(() => finished.resolve());
  await finished.promise.finally(forget);
}
