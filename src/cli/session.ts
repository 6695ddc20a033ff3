import type { Place } from '../input/values.ts';
import type { Gva, Machine } from '../machine/index.ts';
import type { Row } from '../rows/columns.ts';
import { symbolsOf } from '../targets/symbols.ts';
import type { Context } from './context.ts';
import { addressOf } from './symbols.ts';
import { openVm } from './targets.ts';

/** Gives the address of what the user named. */
export type Resolve = (place: Place) => Promise<Gva>;

/** Opens a VM for as long as rows are made of it. It is closed on every way out. */
export async function* withMachine(
  context: Context,
  vm: string | undefined,
  rows: (machine: Machine, addressOf: Resolve) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  const machine = await openVm(vm, context);
  const symbols = symbolsOf(machine);
  const letGo = context.undoing(`letting go of ${machine.name}`);
  try {
    if (!context.signal.aborted) yield* rows(machine, (place) => addressOf(place, symbols));
  } finally {
    await machine.close();
    letGo();
  }
}
