import { KvmiError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import type { SymbolTable } from '../linux/index.ts';
import type { Gva, Machine } from '../machine/index.ts';
import { knownSymbols } from './open.ts';

/** The address of a symbol of a guest's kernel. @throws KvmiError with code E_SYMBOL or E_NO_LINUX. */
export type SymbolResolver = (name: string) => Promise<Gva>;

/** Looks symbols of a machine's kernel up: those of the embedded machine's own kernel, else of the Linux in its memory, which is found once. */
export function symbolsOf(machine: Machine): SymbolResolver {
  let resolver: Promise<SymbolResolver> | undefined;
  return async (name) => {
    resolver ??= resolverOf(machine);
    return (await resolver)(name);
  };
}

async function resolverOf(machine: Machine): Promise<SymbolResolver> {
  const known = await knownSymbols(machine);
  if (known) return async (name) => requireSymbol(known, name);
  const { Linux } = await import('../linux/linux.ts');
  const { vmcoreinfo } = machine;
  const linux = await Linux.find(machine.memory, vmcoreinfo === undefined ? {} : { vmcoreinfo });
  return async (name) => linux.symbols.address(name) ?? noSymbol(name, kernelNames(linux.symbols));
}

function requireSymbol(symbols: ReadonlyMap<string, Gva>, name: string): Gva {
  return symbols.get(name) ?? noSymbol(name, symbols.keys());
}

export function* kernelNames(symbols: SymbolTable): Generator<string> {
  for (let i = 0; i < symbols.size; i++) yield symbols.name(i);
}

/** Throws a KvmiError with code E_SYMBOL that says which of `names` may have been meant. */
export function noSymbol(name: string, names: Iterable<string>): never {
  const hint =
    didYouMean(name, [...new Set(names)]) ??
    'Symbols of data need CONFIG_KALLSYMS_ALL; some exist only in some versions or configurations.';
  throw new KvmiError('E_SYMBOL', `the kernel has no symbol ${name}`, { hint, data: { name } });
}
