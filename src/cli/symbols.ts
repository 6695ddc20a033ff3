import type { Place } from '../input/values.ts';
import type { Gva } from '../machine/index.ts';
import type { SymbolResolver } from '../targets/symbols.ts';

/** The guest-virtual address of a place: a symbol is looked up in the guest's kernel. @throws what `resolve` throws. */
export async function addressOf({ symbol, offset }: Place, resolve: SymbolResolver): Promise<Gva> {
  if (symbol === undefined) return offset;
  return BigInt.asUintN(64, (await resolve(symbol)) + offset);
}
