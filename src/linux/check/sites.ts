import { getS32, getU64 } from '../../abi/bytes.ts';
import type { Gva } from '../../machine/index.ts';
import { Bounds } from '../../reading/bounds.ts';
import type { Walk } from '../../reading/walk.ts';
import { type ModuleObject, moduleList } from '../modules.ts';
import type { Session } from '../session.ts';
import { directCalls, kprobeAddresses, trampolines } from './hooks.ts';

/*
 * Where a kernel changes its own text while it runs, and what may then stand there. An address that is on no list
 * never changes after boot.
 */

/** A place that may change. */
export interface Site {
  readonly kind: 'static key' | 'static call' | 'ftrace' | 'ftrace call' | 'kprobe';
  readonly length: number;
  /** Static keys: where the jump leads. */
  readonly target?: Gva;
}

export interface Sites {
  readonly at: ReadonlyMap<Gva, Site>;
  /** Where calls from ftrace sites may lead besides the kernel's text: code that is made for them. */
  readonly trampolines: ReadonlySet<Gva>;
}

/** No site is longer. */
export const MAX_SITE = 5;
const MAX_SITES = 1_000_000;

export function* sitesOf(session: Session): Walk<Sites> {
  const at = new Map<Gva, Site>();
  for (const add of [staticKeys, staticCalls, ftraceSites])
    yield* session.attempt('places of self-modification', add(session, at), undefined);
  for (const address of yield* session.attempt('kprobes', kprobeAddresses(session), []))
    at.set(address, { kind: 'kprobe', length: MAX_SITE });
  const targets = [
    ...(yield* session.attempt('ftrace', trampolines(session), [])),
    ...(yield* session.attempt('ftrace', directCalls(session), [])),
  ];
  return { at, trampolines: new Set(targets) };
}

/** A table of the kernel's image, or of a module. */
interface Table {
  readonly base: Gva;
  readonly bytes: Uint8Array;
}

const MAX_TABLE = 32 << 20;

/** What lies between two symbols; empty when the kernel has none. */
function* imageTable(session: Session, start: string, end: string): Walk<Table> {
  const base = session.kernel.symbols.address(start) ?? 0n;
  const size = Number((session.kernel.symbols.address(end) ?? base) - base);
  return {
    base,
    bytes: size > 0 ? yield* session.kernel.readBulk(base, Math.min(size, MAX_TABLE)) : NOTHING,
  };
}

const NOTHING = new Uint8Array();

/** The tables of this kind of all modules. */
function* moduleTables(
  session: Session,
  entry: number,
  place: (module: ModuleObject) => { readonly base: Gva; readonly count: number } | undefined,
): Walk<Table[]> {
  const tables: Table[] = [];
  for (const module of yield* session.attempt('modules', moduleList(session), [])) {
    const { base, count } = place(module) ?? { base: 0n, count: 0 };
    if (base === 0n || count === 0 || count * entry > MAX_TABLE) continue;
    const read = session.kernel.readBulk(base, count * entry);
    tables.push({ base, bytes: yield* session.attempt('a table of a module', read, NOTHING) });
  }
  return tables;
}

/** Entries are relative to themselves; before 4.20 they were absolute. */
function* staticKeys(session: Session, at: Map<Gva, Site>): Walk<void> {
  const { size, fields } = session.kernel.layouts.get('jumpEntry');
  const { code, target } = fields;
  if (code === undefined || target === undefined || size === 0) return;
  const tables = [
    yield* imageTable(session, '__start___jump_table', '__stop___jump_table'),
    ...(yield* moduleTables(session, size, (module) =>
      module.has('jumpEntries')
        ? { base: module.pointer('jumpEntries'), count: module.number('jumpCount') }
        : undefined,
    )),
  ];
  for (const { base, bytes } of tables) {
    const address = (entry: number, { offset, size: width }: { offset: number; size: number }) =>
      width === 8
        ? getU64(bytes, entry + offset)
        : base + BigInt(entry + offset + getS32(bytes, entry + offset));
    for (let entry = 0; entry + size <= bytes.length && at.size < MAX_SITES; entry += size)
      at.set(address(entry, code), { kind: 'static key', length: MAX_SITE, target: address(entry, target) });
  }
}

function* staticCalls(session: Session, at: Map<Gva, Site>): Walk<void> {
  const { size } = session.kernel.layouts.get('staticCallSite');
  if (size === 0) return;
  const tables = [
    yield* imageTable(session, '__start_static_call_sites', '__stop_static_call_sites'),
    ...(yield* moduleTables(session, size, (module) =>
      module.has('staticCalls')
        ? { base: module.pointer('staticCalls'), count: module.number('staticCallCount') }
        : undefined,
    )),
  ];
  for (const { base, bytes } of tables)
    for (let entry = 0; entry + size <= bytes.length && at.size < MAX_SITES; entry += size)
      at.set(base + BigInt(entry + getS32(bytes, entry)), { kind: 'static call', length: MAX_SITE });
  // The trampoline of each key is patched, too, and is a site by its symbol.
  for (const { name, address } of session.kernel.symbols)
    if (name.startsWith('__SCT__')) at.set(address, { kind: 'static call', length: MAX_SITE });
}

/** Where ftrace's own code calls who uses it. */
const FTRACE_CALLS = ['ftrace_call', 'ftrace_regs_call', 'ftrace_graph_call', 'ftrace_epilogue'];

function* ftraceSites(session: Session, at: Map<Gva, Site>): Walk<void> {
  const { symbols } = session.kernel;
  for (const name of FTRACE_CALLS) {
    const address = symbols.address(name);
    if (address !== undefined) at.set(address, { kind: 'ftrace call', length: MAX_SITE });
  }
  const first = symbols.address('ftrace_pages_start');
  if (first === undefined) return;
  const { size, fields } = session.kernel.layouts.get('ftraceRecord');
  const offset = fields.address?.offset ?? 0;
  const bounds = new Bounds(session, 'the list of ftrace sites');
  for (let page = yield* session.space.u64(first); page !== 0n && bounds.allows(page); ) {
    const group = yield* session.object('ftracePage', page);
    const count = Math.min(group.number('count'), MAX_SITES);
    const bytes = yield* session.kernel.readBulk(group.pointer('records'), count * size);
    for (let i = 0; i < count && at.size < MAX_SITES; i++)
      at.set(getU64(bytes, i * size + offset), { kind: 'ftrace', length: MAX_SITE });
    page = group.pointer('next');
  }
}

const NOPS = ['0f1f440000', '6690', '9090909090', '666690', '66666690', '6666666690', '3e8d742600'];
const CALL = 0xe8;
const JMP = 0xe9;
const SHORT_JMP = 0xeb;
const INT3 = 0xcc;
const RET = 0xc3;

/** What the kernel itself may have put at a site. */
export function isLegitimate(
  site: Site,
  address: Gva,
  bytes: Uint8Array,
  isCode: (target: Gva) => boolean,
): boolean {
  const text = Buffer.from(bytes).toString('hex');
  if (NOPS.some((nop) => text.startsWith(nop))) return true;
  // The first byte of a change under way, and of a kprobe for good.
  if (bytes[0] === INT3) return true;
  const near = address + 5n + BigInt(getS32(bytes, 1));
  const short = address + 2n + BigInt((bytes[1]! << 24) >> 24);
  switch (site.kind) {
    case 'static key':
      return (bytes[0] === JMP && near === site.target) || (bytes[0] === SHORT_JMP && short === site.target);
    case 'static call':
      return (
        bytes[0] === RET ||
        text.startsWith('2e2e2e') ||
        text.startsWith('31c0') ||
        text.startsWith('6631c0') ||
        ((bytes[0] === CALL || bytes[0] === JMP) && isCode(near))
      );
    case 'ftrace':
      return bytes[0] === CALL && isCode(near);
    case 'ftrace call':
      return bytes[0] === RET || ((bytes[0] === CALL || bytes[0] === JMP) && isCode(near));
    case 'kprobe':
      return bytes[0] === JMP;
  }
}
