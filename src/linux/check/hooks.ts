import type { Gva } from '../../machine/index.ts';
import { bpfPrograms } from '../bpf.ts';
import { Bounds, chain } from '../list.ts';
import type { Session } from '../session.ts';
import { hex } from '../text.ts';
import type { Walk } from '../walk.ts';

/** Something that the kernel's own mechanisms call at a place in the kernel. */
export interface Hook {
  readonly kind: 'ftrace' | 'kprobe' | 'ebpf';
  /** Where, as a symbol with an offset; for ftrace the mechanism decides, and it is empty. */
  readonly place: string;
  /** What is called, as a symbol; an address where there is none. */
  readonly handler: string;
  readonly address: string;
}

export function* hooks(session: Session): Walk<Hook[]> {
  const rows: Hook[] = [];
  rows.push(...(yield* session.attempt('ftrace', ftraceHooks(session), [])));
  rows.push(...(yield* session.attempt('kprobes', kprobeHooks(session), [])));
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

/** A symbol with an offset, or the bare address. */
export function symbolic(session: Session, address: Gva): string {
  const { symbols, imageStart, imageEnd } = session.kernel;
  if (address < imageStart || address >= imageEnd) return hex(address);
  const at = symbols.lookup(address);
  return at === undefined
    ? hex(address)
    : at.offset === 0
      ? at.name
      : `${at.name}+0x${at.offset.toString(16)}`;
}

function* ftraceOps(session: Session) {
  const list = session.kernel.symbols.address('ftrace_ops_list');
  const end = session.kernel.symbols.address('ftrace_list_end');
  const found = [];
  if (list === undefined) return [];
  const bounds = new Bounds(session, 'the list of ftrace users');
  for (let gva = yield* session.space.u64(list); gva !== 0n && gva !== end && bounds.allows(gva); ) {
    const ops = yield* session.object('ftraceOps', gva);
    found.push(ops);
    gva = ops.pointer('next');
  }
  return found;
}

function* ftraceHooks(session: Session): Walk<Hook[]> {
  return (yield* ftraceOps(session)).map((ops) => ({
    kind: 'ftrace',
    place: '',
    handler: symbolic(session, ops.pointer('function')),
    address: hex(ops.gva),
  }));
}

/** Code made for one user of ftrace, which its sites call. */
export function* trampolines(session: Session): Walk<Gva[]> {
  return (yield* ftraceOps(session))
    .map((ops) => ops.pointer('trampoline'))
    .filter((address) => address !== 0n);
}

const KPROBE_BUCKETS = 64;

function* kprobes(session: Session) {
  const table = session.kernel.symbols.address('kprobe_table');
  if (table === undefined) return [];
  const { offset } = session.kernel.layouts.field('kprobe', 'node');
  const bounds = new Bounds(session, 'the table of kprobes');
  const found = [];
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

function* kprobeHooks(session: Session): Walk<Hook[]> {
  return (yield* kprobes(session)).map((probe) => ({
    kind: 'kprobe',
    place: symbolic(session, probe.pointer('address')),
    handler: symbolic(session, probe.pointer('handler')),
    address: hex(probe.gva),
  }));
}
