import { KvmiError } from '../error.ts';
import {
  type Gpa,
  type Gva,
  leafMappings,
  type Paging,
  type PhysicalMemory,
  translate,
} from '../machine/index.ts';
import { type OnProgress, type Range, ramOf, scan } from '../reading/scan.ts';
import { textOf } from '../reading/text.ts';
import { type Walk, wait } from '../reading/walk.ts';
import { loadCached, type Source } from './cache.ts';
import { decodeKallsyms, type KallsymsTables } from './kallsyms.ts';
import { findTokenTables, MAX_TOKEN_TABLE, tablesAround } from './kallsyms-search.ts';
import { type StructLayout, SYMBOL_NAMES } from './layout.ts';
import { rememberedPlaces, rememberPlace } from './places.ts';
import type { SymbolTable } from './symbols.ts';
import { findVmcoreinfo, Vmcoreinfo } from './vmcoreinfo.ts';

/** Where a kernel is, before its types are known. */
export interface FoundKernel {
  readonly paging: Paging;
  readonly symbols: SymbolTable;
  readonly banner: string;
  readonly buildId: string | undefined;
  /** Guest-physical minus virtual address of the image. */
  readonly imageDelta: bigint;
  readonly how: 'VMCOREINFO' | 'token table';
  /** How far KASLR moved the image, where that is known. */
  readonly kernelOffset: bigint | undefined;
  /** What names the kernel in a cache. */
  readonly cacheKey: string | undefined;
  /** What the symbols were decoded from. */
  readonly sources: readonly Source[];
  /** Structures that an earlier run resolved. */
  readonly layouts: readonly StructLayout[] | undefined;
}

export interface FindHints {
  readonly onProgress?: OnProgress | undefined;
  /** VMCOREINFO that came with a dump. */
  readonly vmcoreinfo?: string | undefined;
  /** The paging of any vCPU: the kernel's image is then looked for only where it is mapped. */
  readonly paging?: Paging | undefined;
  /** Where kernels that were decoded before are kept. */
  readonly cacheDirectory?: string | undefined;
}

/** Where the kernel's image is mapped, with and without KASLR (Documentation/x86/x86_64/mm.rst). */
const IMAGE_MAP = 0xffff_ffff_8000_0000n;
const IMAGE_MAP_END = 0xffff_ffff_c000_0000n;
const ALIGNMENT = 2 << 20;
const MAX_IMAGE = 192 << 20;
const BANNER = 'Linux version ';

/** Looks for a running kernel: by VMCOREINFO, then by the token table of its symbols. */
export function* findKernel(memory: PhysicalMemory, hints: FindHints): Walk<FoundKernel> {
  if (hints.vmcoreinfo !== undefined) {
    const found = yield* fromVmcoreinfo(memory, new Vmcoreinfo(hints.vmcoreinfo), hints);
    if (found !== undefined) return found;
  }
  const found = (yield* byVmcoreinfo(memory, hints)) ?? (yield* byTokenTable(memory, hints));
  if (found !== undefined) return found;
  throw new KvmiError('E_NO_LINUX', 'no Linux kernel was found in guest memory', {
    hint:
      'The guest runs something else, has not booted yet, or its kernel has no CONFIG_KALLSYMS. ' +
      'Check that all of its memory is readable, and try again after it has booted.',
  });
}

function* byVmcoreinfo(memory: PhysicalMemory, hints: FindHints): Walk<FoundKernel | undefined> {
  const { cacheDirectory, onProgress } = hints;
  const places = cacheDirectory === undefined ? [] : rememberedPlaces(cacheDirectory);
  return yield* findVmcoreinfo(memory, { places, onProgress }, function* (info) {
    const found = yield* fromVmcoreinfo(memory, info, hints);
    if (found && cacheDirectory !== undefined) rememberPlace(cacheDirectory, info.gpa);
    return found;
  });
}

function* fromVmcoreinfo(
  memory: PhysicalMemory,
  info: Vmcoreinfo,
  hints: FindHints,
): Walk<FoundKernel | undefined> {
  const top = info.symbol('swapper_pg_dir');
  const physBase = info.number('phys_base');
  if (top === undefined || physBase === undefined || top < IMAGE_MAP) return undefined;
  const imageDelta = physBase - IMAGE_MAP;
  const paging = longPaging(Number(top + imageDelta), info.number('pgtable_l5_enabled') === 1n);
  // A page that an earlier boot left behind names page tables that are none any more.
  if (!(yield* maps(memory, paging, top, imageDelta))) return undefined;
  const { kernelOffset, buildId } = info;
  const cacheKey = buildId ?? `release ${info.release}`;
  const common = { paging, buildId, imageDelta, how: 'VMCOREINFO', kernelOffset, cacheKey } as const;
  if (hints.cacheDirectory !== undefined) {
    const cached = yield* loadCached(hints.cacheDirectory, cacheKey, { memory, imageDelta, kernelOffset });
    const banner = cached && (yield* readBanner(memory, cached.symbols, imageDelta));
    if (banner !== undefined && banner === cached!.banner) return { ...common, ...cached!, sources: [] };
  }
  const decoded =
    (yield* listedSymbols(memory, info, imageDelta)) ??
    (yield* searchImage(memory, paging, info, imageDelta));
  const banner = decoded && (yield* readBanner(memory, decoded.symbols, imageDelta));
  return banner === undefined ? undefined : { ...common, ...decoded!, banner, layouts: undefined };
}

function longPaging(root: Gpa, fiveLevels: boolean): Paging {
  return { mode: fiveLevels ? '5-level' : '4-level', root, nx: true };
}

function* maps(memory: PhysicalMemory, paging: Paging, gva: Gva, delta: bigint): Walk<boolean> {
  return (yield* wait(translate(memory, paging, gva))) === Number(gva + delta);
}

/** The tables that VMCOREINFO lists since Linux 6.0. */
function* listedSymbols(
  memory: PhysicalMemory,
  info: Vmcoreinfo,
  imageDelta: bigint,
): Walk<Decoded | undefined> {
  const [names, number, tokens, index, offsets] = [
    'kallsyms_names',
    'kallsyms_num_syms',
    'kallsyms_token_table',
    'kallsyms_token_index',
    'kallsyms_offsets',
  ].map((name) => info.symbol(name));
  if (!names || !number || !tokens || !index || !offsets) return undefined;
  const read = function* (gva: Gva, size: number): Walk<Buffer | undefined> {
    if (size <= 0 || size > MAX_IMAGE) return undefined;
    const into = Buffer.allocUnsafeSlow(size);
    return (yield* wait(memory.read(Number(gva + imageDelta), into))) ? into : undefined;
  };
  const count = (yield* read(number, 4))?.readUInt32LE(0) ?? 0;
  const baseSymbol = info.symbol('kallsyms_relative_base');
  const base = baseSymbol === undefined ? undefined : yield* read(baseSymbol, 8);
  const tables = {
    count,
    namesAddress: names,
    names: yield* read(names, Number(tokens - names)),
    tokenTable: yield* read(tokens, Number(index - tokens)),
    tokenIndex: yield* read(index, 512),
    offsets: yield* read(offsets, 4 * count),
    offsetsAddress: offsets,
    relativeBase: base?.readBigUInt64LE(0),
  };
  if (Object.entries(tables).some(([key, value]) => value === undefined && key !== 'relativeBase'))
    return undefined;
  return decoded(tables as KallsymsTables);
}

type Decoded = Pick<FoundKernel, 'symbols' | 'sources'>;

function decoded(tables: KallsymsTables): Decoded | undefined {
  try {
    const { names, namesAddress, tokenTable, tokenIndex, offsets, offsetsAddress } = tables;
    const size = names.length + tokenTable.length + tokenIndex.length;
    return {
      symbols: decodeKallsyms(tables),
      // The token table follows the names, and its index follows that.
      sources: [
        { address: namesAddress, size },
        { address: offsetsAddress, size: offsets.length },
      ],
    };
  } catch (error) {
    if (error instanceof KvmiError) return undefined;
    throw error;
  }
}

/** Kernels before 6.0: the image is known, and the tables are somewhere in it. */
function* searchImage(
  memory: PhysicalMemory,
  paging: Paging,
  info: Vmcoreinfo,
  imageDelta: bigint,
): Walk<Decoded | undefined> {
  const text = info.symbol('_stext');
  if (text === undefined || !(yield* maps(memory, paging, text, imageDelta))) return undefined;
  const gpa = Number(text + imageDelta);
  const image = yield* readUpTo(memory, gpa, MAX_IMAGE);
  for (const at of limited(findTokenTables(image))) {
    const tables = tablesAround(image, at, text);
    const found = tables && decoded(tables);
    if (found !== undefined) return found;
  }
  return undefined;
}

const MAX_TOKEN_TABLES = 16;

function* limited<T>(items: Iterable<T>): IterableIterator<T> {
  let count = 0;
  for (const item of items) {
    if (count++ >= MAX_TOKEN_TABLES) return;
    yield item;
  }
}

/** What is backed of `size` bytes, without a gap. */
function* readUpTo(memory: PhysicalMemory, gpa: Gpa, size: number): Walk<Buffer> {
  const region = memory.regions.find((at) => gpa >= at.gpa && gpa < at.gpa + at.size);
  const length = region === undefined ? 0 : Math.min(size, region.gpa + region.size - gpa);
  const into = Buffer.allocUnsafeSlow(length);
  return (yield* wait(memory.read(gpa, into))) ? into : Buffer.alloc(0);
}

function* readBanner(
  memory: PhysicalMemory,
  symbols: SymbolTable,
  imageDelta: bigint,
): Walk<string | undefined> {
  const address = symbols.address('linux_banner');
  const gpa = address === undefined ? -1 : Number(address + imageDelta);
  if (gpa < 0) return undefined;
  const bytes = new Uint8Array(512);
  if (!(yield* wait(memory.read(gpa, bytes)))) return undefined;
  const banner = textOf(bytes).split('\n')[0]!;
  return banner.startsWith(BANNER) ? banner : undefined;
}

function* byTokenTable(memory: PhysicalMemory, hints: FindHints): Walk<FoundKernel | undefined> {
  const options = { phase: 'symbol table', overlap: MAX_TOKEN_TABLE, onProgress: hints.onProgress };
  const gpas: Gpa[] = [];
  yield* scan(memory, yield* searchRanges(memory, hints.paging), options, (bytes, gpa) => {
    for (const at of limited(findTokenTables(bytes)))
      if (!gpas.includes(gpa + at.table)) gpas.push(gpa + at.table);
    return gpas.length >= MAX_TOKEN_TABLES ? true : undefined;
  });
  for (const gpa of gpas) {
    const found = yield* aroundTokenTable(memory, gpa);
    if (found !== undefined) return found;
  }
  return undefined;
}

function* searchRanges(memory: PhysicalMemory, paging: Paging | undefined): Walk<Range[]> {
  if (paging === undefined) return ramOf(memory.regions);
  const { mappings } = yield* wait(
    leafMappings(memory, paging, { from: IMAGE_MAP, to: IMAGE_MAP_END, limit: 1 << 18 }),
  );
  const ranges: { gpa: Gpa; size: number }[] = [];
  for (const { gpa, size } of mappings) {
    const last = ranges.at(-1);
    if (last !== undefined && last.gpa + last.size === gpa) last.size += size;
    else ranges.push({ gpa, size });
  }
  return ranges.length > 0 ? ranges : ramOf(memory.regions);
}

/** The tables are at most this far from the token table, on either side. */
const MAX_BEFORE = 24 << 20;
const MAX_BEHIND = 24 << 20;

function* aroundTokenTable(memory: PhysicalMemory, gpa: Gpa): Walk<FoundKernel | undefined> {
  const region = memory.regions.find((at) => gpa >= at.gpa && gpa < at.gpa + at.size);
  if (region === undefined) return undefined;
  const start = Math.max(region.gpa, gpa - MAX_BEFORE);
  const bytes = yield* readUpTo(memory, start, gpa - start + MAX_BEHIND);
  for (const at of findTokenTables(bytes.subarray(gpa - start))) {
    if (at.table !== 0) break;
    const tables = tablesAround(bytes, { table: gpa - start, index: gpa - start + at.index }, BigInt(start));
    const found = tables && (yield* placeImage(memory, tables, gpa));
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Finds where the image is in guest-physical memory, and the page tables in it. */
function* placeImage(
  memory: PhysicalMemory,
  tables: KallsymsTables,
  tokenTable: Gpa,
): Walk<FoundKernel | undefined> {
  const symbols = decoded(tables)?.symbols;
  if (symbols === undefined) return undefined;
  const isPlaceRelative = (symbols.address('linux_banner') ?? IMAGE_MAP) < IMAGE_MAP;
  for (const imageDelta of isPlaceRelative ? [0n] : deltasNear(symbols, tokenTable)) {
    const banner = yield* readBanner(memory, symbols, imageDelta);
    if (banner === undefined) continue;
    const found = isPlaceRelative
      ? yield* moved(memory, tables, symbols)
      : yield* withPaging(memory, symbols, imageDelta);
    if (found !== undefined) return { ...found, ...UNNAMED, banner };
  }
  return undefined;
}

const UNNAMED = {
  buildId: undefined,
  how: 'token table',
  kernelOffset: undefined,
  cacheKey: undefined,
  sources: [],
  layouts: undefined,
} as const;

/** Distances at which the token table would lie in the image, whose start is aligned. */
function* deltasNear(symbols: SymbolTable, tokenTable: Gpa): IterableIterator<bigint> {
  const text = symbols.address('_text') ?? symbols.address('_stext');
  if (text === undefined) return;
  const aligned = text - (text % BigInt(ALIGNMENT));
  const lowest = Math.max(0, tokenTable - MAX_IMAGE);
  for (let gpa = lowest - (lowest % ALIGNMENT); gpa <= tokenTable; gpa += ALIGNMENT)
    yield BigInt(gpa) - aligned;
}

type PlacedKernel = Pick<FoundKernel, 'paging' | 'symbols' | 'imageDelta'>;

function* withPaging(
  memory: PhysicalMemory,
  symbols: SymbolTable,
  imageDelta: bigint,
): Walk<PlacedKernel | undefined> {
  const top = SYMBOL_NAMES.topTable
    .map((name) => symbols.address(name))
    .find((address) => address !== undefined);
  if (top === undefined) return undefined;
  for (const fiveLevels of [false, true]) {
    const paging = longPaging(Number(top + imageDelta), fiveLevels);
    if (yield* maps(memory, paging, top, imageDelta)) return { paging, symbols, imageDelta };
  }
  return undefined;
}

/** Place-relative symbols were computed from guest-physical places: the page tables say how far to move them. */
function* moved(
  memory: PhysicalMemory,
  tables: KallsymsTables,
  physical: SymbolTable,
): Walk<PlacedKernel | undefined> {
  const top = SYMBOL_NAMES.topTable
    .map((name) => physical.address(name))
    .find((address) => address !== undefined);
  const text = Number(physical.address('_stext') ?? -1n);
  if (top === undefined) return undefined;
  for (const fiveLevels of [false, true]) {
    const paging = longPaging(Number(top), fiveLevels);
    const filter = { from: IMAGE_MAP, to: IMAGE_MAP_END, limit: 1 << 18 };
    const { mappings } = yield* wait(leafMappings(memory, paging, filter));
    const home = mappings.find(({ gpa, size }) => text >= gpa && text < gpa + size);
    if (home === undefined) continue;
    const imageDelta = BigInt(home.gpa) - home.gva;
    const symbols = decoded({ ...tables, offsetsAddress: tables.offsetsAddress - imageDelta })?.symbols;
    if (symbols !== undefined) return { paging, symbols, imageDelta };
  }
  return undefined;
}
