import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import type { Context } from './context.ts';
import { didYouMean } from './suggest.ts';
import type { OpenedVm } from './target-kind.ts';
import type { Place } from './values.ts';

/**
 * The guest-virtual address of a place: a symbol is looked up in the guest's kernel.
 *
 * @throws KvmiError with code E_SYMBOL, or E_NO_LINUX when the guest runs something that has no known symbols.
 */
export async function addressOf(
  { symbol, offset }: Place,
  { machine, kind }: OpenedVm,
  context: Context,
): Promise<Gva> {
  if (symbol === undefined) return offset;
  const own = await kind.symbols?.();
  const start = own ? ownSymbol(own, symbol) : await linuxSymbol(machine.memory, symbol, context);
  return BigInt.asUintN(64, start + offset);
}

function ownSymbol(symbols: ReadonlyMap<string, Gva>, name: string): Gva {
  const address = symbols.get(name);
  if (address !== undefined) return address;
  const hint = didYouMean(name, [...symbols.keys()]);
  throw new KvmiError('E_SYMBOL', `the kernel has no symbol ${name}`, {
    ...(hint && { hint }),
    data: { name },
  });
}

async function linuxSymbol(
  memory: OpenedVm['machine']['memory'],
  name: string,
  { log }: Context,
): Promise<Gva> {
  const { Linux } = await import('../linux/linux.ts');
  const linux = await Linux.find(memory);
  const address = linux.symbols.require(name);
  log.debug(`${name} of ${linux.kernel.release} is at 0x${address.toString(16)}`);
  return address;
}
