import { getU32, getU64 } from '../abi/bytes.ts';
import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import { type ModuleMemory, type ModuleObject, memoriesOf, moduleList } from './modules.ts';
import type { Session } from './session.ts';
import type { Symbol as KernelSymbol } from './symbols.ts';

/** A symbol of a loaded module. */
export interface ModuleSymbol extends KernelSymbol {
  readonly module: string;
}

/** Elf64_Sym: name u32, info u8, other u8, section u16, value u64, size u64. */
const ELF_SYMBOL = 24;
const MAX_NAME = 512;

/** Symbols of all modules, or of one, as in /proc/kallsyms. */
export function* moduleSymbols(session: Session, only?: string): Walk<ModuleSymbol[]> {
  const found: ModuleSymbol[] = [];
  for (const module of session.timely(yield* moduleList(session))) {
    if (only !== undefined && module.text('name') !== only) continue;
    const what = `the symbols of module ${module.text('name')}`;
    yield* session.attempt(what, symbolsOf(session, module, found), undefined);
  }
  return found;
}

function* symbolsOf(session: Session, module: ModuleObject, found: ModuleSymbol[]): Walk<undefined> {
  if (!module.has('kallsyms')) return;
  const name = module.text('name');
  const tables = yield* session.object('moduleSymbols', module.pointer('kallsyms'));
  let count = tables.number('count');
  if (found.length + count > session.limit) {
    session.note(`module ${name} has more than ${session.limit} symbols`);
    count = session.limit - found.length;
  }
  const bytes = yield* session.space.read(tables.pointer('symbols'), count * ELF_SYMBOL);
  const strings = tables.pointer('strings');
  const types = tables.has('types') ? yield* session.space.read(tables.pointer('types'), count) : undefined;
  for (let i = 0; i < count && ((i & 255) !== 0 || session.hasTime()); i++) {
    const at = i * ELF_SYMBOL;
    const text = yield* session.space.string(strings + BigInt(getU32(bytes, at)), MAX_NAME);
    if (text === '') continue;
    // Without a table of their own, the kernel keeps the letters where ELF has binding and kind.
    const type = String.fromCharCode(types?.[i] ?? bytes[at + 4]!);
    found.push({ name: text, address: getU64(bytes, at + 8), type, module: name });
  }
}

/** The symbol of a module that an address belongs to. */
export type ModuleSymbolAt = ModuleSymbol & { readonly offset: number };

/** Finds what addresses in modules belong to: the closest symbol at or before each, in the same piece of memory. */
export function* moduleSymbolLookup(session: Session): Walk<(address: Gva) => ModuleSymbolAt | undefined> {
  const memories: ModuleMemory[] = [];
  for (const module of yield* session.attempt('modules', moduleList(session), []))
    for (const memory of yield* session.attempt('modules', memoriesOf(session, module), []))
      memories.push(memory);
  const symbols = yield* moduleSymbols(session);
  symbols.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
  return (address) => {
    const home = memories.find(({ base, size }) => address >= base && address < base + BigInt(size));
    if (home === undefined) return undefined;
    const at = symbols.findLast((symbol) => symbol.address <= address);
    if (at === undefined || at.address < home.base) return undefined;
    return { ...at, offset: Number(address - at.address) };
  };
}
