import type { Gva } from '../../machine/index.ts';
import { Bounds } from '../../reading/bounds.ts';
import { hex } from '../../reading/text.ts';
import type { Walk } from '../../reading/walk.ts';
import { bpfPrograms } from '../bpf.ts';
import { chain } from '../list.ts';
import { moduleSymbolLookup } from '../module-symbols.ts';
import type { Obj, Session } from '../session.ts';
import type { CodeTest } from './code.ts';
import type { Finding } from './finding.ts';

/** Something that the kernel's own mechanisms call at a place in the kernel. */
export interface Hook {
  readonly kind: 'ftrace' | 'kprobe' | 'ebpf';
  /** Where, as a symbol with an offset; empty when it is everywhere, or when that is not known. */
  readonly place: string;
  /** What is called, as a symbol, with its module in brackets; an address where there is none. */
  readonly handler: string;
  readonly address: Gva;
}

export function* hooks(session: Session): Walk<Hook[]> {
  const nameOf = yield* namer(session);
  const rows = [
    ...(yield* session.attempt('ftrace', ftraceHooks(session, nameOf), [])),
    ...(yield* session.attempt('kprobes', kprobeHooks(session, nameOf), [])),
  ];
  for (const program of yield* session.attempt('eBPF programs', bpfPrograms(session), [])) {
    rows.push({
      kind: 'ebpf',
      place: program.attachedTo,
      handler: `${program.type} ${program.name} (id ${program.id})`,
      address: program.address,
    });
  }
  return rows;
}

function withOffset(name: string, offset: number): string {
  return offset === 0 ? name : `${name}+0x${offset.toString(16)}`;
}

/** A symbol of the kernel image with an offset, or the bare address. */
export function symbolic(session: Session, address: Gva): string {
  const { kernel } = session;
  const at = address >= kernel.imageStart && address < kernel.imageEnd ? kernel.symbolAt(address) : undefined;
  return at === undefined ? hex(address) : withOffset(at.name, at.offset);
}

type NameOf = (address: Gva) => string;

/** {@link symbolic} for addresses in modules, too. */
function* namer(session: Session): Walk<NameOf> {
  const inModule = yield* moduleSymbolLookup(session);
  return (address) => {
    const at = inModule(address);
    return at === undefined ? symbolic(session, address) : `${withOffset(at.name, at.offset)} [${at.module}]`;
  };
}

function* ftraceOps(session: Session): Walk<Obj<'ftraceOps'>[]> {
  const list = session.kernel.symbols.address('ftrace_ops_list');
  const end = session.kernel.symbols.address('ftrace_list_end');
  const found: Obj<'ftraceOps'>[] = [];
  if (list === undefined) return [];
  const bounds = new Bounds(session, 'the list of ftrace users');
  for (let gva = yield* session.space.u64(list); gva !== 0n && gva !== end && bounds.allows(gva); ) {
    const ops = yield* session.object('ftraceOps', gva);
    found.push(ops);
    gva = ops.pointer('next');
  }
  return found;
}

/** A row for each function that a user of ftrace asks for; one without a place for who asks for all. */
function* ftraceHooks(session: Session, nameOf: NameOf): Walk<Hook[]> {
  const rows: Hook[] = [];
  for (const ops of yield* ftraceOps(session)) {
    const common = {
      kind: 'ftrace',
      handler: nameOf(ops.pointer('function')),
      address: ops.gva,
    } as const;
    const sites = yield* session.attempt('ftrace', filterOf(session, ops), []);
    if (!session.hasTime() || !session.hasRoom(rows.length + sites.length, 'functions of ftrace')) break;
    const places = sites.length === 0 ? [''] : sites.map(({ address }) => nameOf(address));
    for (const place of places) rows.push({ ...common, place });
  }
  return rows;
}

interface FtraceEntry {
  readonly address: Gva;
  /** What is called at once, without ftrace in between; 0 for nothing. */
  readonly direct: Gva;
}

function* filterOf(session: Session, ops: Obj<'ftraceOps'>): Walk<FtraceEntry[]> {
  if (!ops.has('hash') || session.kernel.layouts.get('ftraceOpsHash').size === 0) return [];
  const hashes = yield* session.object('ftraceOpsHash', ops.pointer('hash'));
  return yield* entriesOf(session, hashes.pointer('filter'));
}

const MAX_HASH_BITS = 16;

function* entriesOf(session: Session, gva: Gva): Walk<FtraceEntry[]> {
  if (gva === 0n) return [];
  const hash = yield* session.object('ftraceHash', gva);
  const bits = hash.number('bits');
  if (hash.number('count') === 0 || bits > MAX_HASH_BITS) return [];
  const { offset } = session.kernel.layouts.field('ftraceEntry', 'node');
  const bounds = new Bounds(session, 'the functions of an ftrace user');
  const found: FtraceEntry[] = [];
  for (let i = 0; i < 2 ** bits; i++) {
    const first = yield* session.space.u64(hash.pointer('buckets') + BigInt(8 * i));
    for (const node of yield* chain(session, first, bounds, 'the functions of an ftrace user')) {
      const entry = yield* session.object('ftraceEntry', node - BigInt(offset));
      const direct = entry.has('direct') ? entry.pointer('direct') : 0n;
      found.push({ address: entry.pointer('address'), direct });
    }
  }
  return found;
}

/** Code made for one user of ftrace, which its sites call. */
export function* trampolines(session: Session): Walk<Gva[]> {
  return (yield* ftraceOps(session))
    .map((ops) => ops.pointer('trampoline'))
    .filter((address) => address !== 0n);
}

/** What sites call without ftrace in between, as eBPF has it. */
export function* directCalls(session: Session): Walk<Gva[]> {
  const pointer = session.kernel.symbols.address('direct_functions');
  if (pointer === undefined || session.kernel.layouts.get('ftraceHash').size === 0) return [];
  return (yield* entriesOf(session, yield* session.space.u64(pointer))).map(({ direct }) => direct);
}

const KPROBE_BUCKETS = 64;

function* kprobes(session: Session): Walk<Obj<'kprobe'>[]> {
  const table = session.kernel.symbols.address('kprobe_table');
  if (table === undefined) return [];
  const { offset } = session.kernel.layouts.field('kprobe', 'node');
  const bounds = new Bounds(session, 'the table of kprobes');
  const found: Obj<'kprobe'>[] = [];
  for (let i = 0; i < KPROBE_BUCKETS; i++) {
    const first = yield* session.space.u64(table + BigInt(8 * i));
    for (const node of yield* chain(session, first, bounds, 'the table of kprobes'))
      found.push(yield* session.object('kprobe', node - BigInt(offset)));
  }
  return found;
}

export function* kprobeAddresses(session: Session): Walk<Gva[]> {
  return (yield* kprobes(session)).map((probe) => probe.pointer('address'));
}

function* kprobeHooks(session: Session, nameOf: NameOf): Walk<Hook[]> {
  return (yield* kprobes(session)).map((probe) => ({
    kind: 'kprobe',
    place: nameOf(probe.pointer('address')),
    handler: nameOf(probe.pointer('handler')),
    address: probe.gva,
  }));
}

/** Handlers of ftrace and kprobes must be code of the kernel or of a module that is in its list. */
export function* checkHooks(session: Session, isCode: CodeTest): Walk<Finding[]> {
  const handlers = [
    ...(yield* ftraceOps(session)).map((ops) => ['ftrace', ops, ops.pointer('function')] as const),
    ...(yield* kprobes(session)).map((probe) => ['kprobe', probe, probe.pointer('handler')] as const),
  ];
  return handlers
    .filter(([, , handler]) => handler !== 0n && !isCode(handler))
    .map(([kind, { gva }, handler]) => ({
      check: 'hook',
      subject: `a user of ${kind}`,
      address: gva,
      expected: 'a handler in the kernel or in a module',
      found: symbolic(session, handler),
    }));
}
