import { introspect } from '../introspect.ts';
import type { Row } from '../rows/columns.ts';
import type { Guest } from '../tool/index.ts';
import type { Context } from './context.ts';
import { type Resolve, withMachine } from './session.ts';
import { StopMeter } from './stop-meter.ts';

/**
 * Opens a VM and hooks it to this process for as long as rows are made of it. It is unhooked on every way out, and as soon as the command is told
 * to end: what waits for the guest fails then.
 */
export function withGuest(
  context: Context,
  vm: string | undefined,
  rows: (guest: Guest, machine: StopMeter, addressOf: Resolve) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  return withMachine(context, vm, async function* (opened, resolve) {
    const machine = new StopMeter(opened);
    const guest = await introspect(machine, {
      log: { ...context.log, info: (message) => context.log.debug(message) },
      onError: (error) => context.log.warn(error.message),
    });
    const leave = (): void => void guest.detach();
    context.signal.addEventListener('abort', leave, { once: true });
    try {
      if (!context.signal.aborted) yield* rows(guest, machine, resolve);
    } finally {
      context.signal.removeEventListener('abort', leave);
      await guest.detach();
    }
    // The VM's end, or that it cannot be reached any more, is how the command ends, too.
    const failure = await guest.closed;
    if (failure) throw failure;
  });
}
