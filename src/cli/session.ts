import type { Gva, Machine } from '../machine/index.ts';
import type { Context } from './context.ts';
import type { Row } from './output/columns.ts';
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
