import { introspect } from '../introspect.ts';
import type { Gva, Machine } from '../machine/index.ts';
import type { Guest } from '../tool/index.ts';
import type { Context } from './context.ts';
import type { Row } from './output/columns.ts';
import { StopMeter } from './stop-meter.ts';
import { addressOf } from './symbols.ts';
import { openVm } from './targets.ts';
import type { Place } from './values.ts';

/** Gives the address of what the user named. */
export type Resolve = (place: Place) => Promise<Gva>;

/** Opens a VM for as long as rows are made of it. It is closed on every way out. */
export async function* withMachine(
  context: Context,
  vm: string | undefined,
  rows: (machine: Machine, addressOf: Resolve) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  const opened = await openVm(vm, context);
  const { machine } = opened;
  try {
    if (!context.signal.aborted) yield* rows(machine, (place) => addressOf(place, opened, context));
  } finally {
    await machine.close();
  }
}

/**
 * The same with the VM hooked to this process. It is unhooked on every way out, and as soon as the command is told
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
  });
}
