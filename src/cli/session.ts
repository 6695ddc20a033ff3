import { introspect } from '../introspect.ts';
import type { Machine } from '../machine/index.ts';
import type { Guest } from '../tool/index.ts';
import type { Context } from './context.ts';
import type { Row } from './output/columns.ts';
import { StopMeter } from './stop-meter.ts';
import { openVm } from './targets.ts';

/** Opens a VM for as long as rows are made of it. It is closed on every way out. */
export async function* withMachine(
  context: Context,
  vm: string | undefined,
  rows: (machine: Machine) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  const machine = await openVm(vm, context);
  try {
    if (!context.signal.aborted) yield* rows(machine);
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
  rows: (guest: Guest, machine: StopMeter) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  return withMachine(context, vm, async function* (opened) {
    const machine = new StopMeter(opened);
    const guest = await introspect(machine, {
      log: { ...context.log, info: (message) => context.log.debug(message) },
      onError: (error) => context.log.warn(error.message),
    });
    const leave = (): void => void guest.detach();
    context.signal.addEventListener('abort', leave, { once: true });
    try {
      if (!context.signal.aborted) yield* rows(guest, machine);
    } finally {
      context.signal.removeEventListener('abort', leave);
      await guest.detach();
    }
  });
}
