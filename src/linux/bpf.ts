import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import { bootTimeOf, pointInTime, readClock } from './clock.ts';
import { idrEntries } from './list.ts';
import type { Session } from './session.ts';

/** A loaded eBPF program, as `bpftool prog` prints it. */
export interface BpfProgram {
  readonly id: number;
  readonly type: string;
  readonly name: string;
  readonly tag: string;
  /** Nanoseconds since 1970 by the guest's clock; undefined when that is not known. */
  readonly loadTime: bigint | undefined;
  readonly jited: boolean;
  /** The kernel function that it is attached to, for the types that have one. */
  readonly attachedTo: string;
  /** Where its code is. */
  readonly code: Gva;
  readonly address: Gva;
}

export function* bpfPrograms(session: Session): Walk<BpfProgram[]> {
  const registry = session.kernel.symbols.address('prog_idr');
  if (registry === undefined) return [];
  const clock = yield* readClock(session);
  const boot = clock && bootTimeOf(clock);
  const types = yield* programTypes(session);
  const { offset } = session.kernel.layouts.field('idr', 'tree');
  const rows: BpfProgram[] = [];
  const entries = yield* idrEntries(session, registry + BigInt(offset), 'eBPF programs');
  for (const { entry } of session.timely(entries)) {
    const row = yield* session.attempt('an eBPF program', programRow(session, entry, types, boot), undefined);
    if (row !== undefined) rows.push(row);
  }
  return rows;
}

function* programRow(
  session: Session,
  gva: Gva,
  types: ReadonlyMap<number, string>,
  boot: bigint | undefined,
): Walk<BpfProgram> {
  const program = yield* session.object('program', gva);
  const aux = yield* session.object('programAux', program.pointer('aux'));
  const attached = aux.has('attached') ? aux.pointer('attached') : 0n;
  const type = program.number('type');
  return {
    id: aux.number('id'),
    type: types.get(type) ?? String(type),
    name: aux.text('name'),
    tag: Buffer.from(program.bytes('tag')).toString('hex'),
    loadTime: boot === undefined ? undefined : pointInTime(boot + aux.big('loadTime')),
    jited: program.number('jited') !== 0,
    attachedTo:
      attached === 0n
        ? ''
        : yield* session.attempt('an eBPF program', session.space.string(attached, 256), ''),
    code: program.pointer('function'),
    address: gva,
  };
}

const TYPE_PREFIX = 'BPF_PROG_TYPE_';

/** Names of program types, from the kernel's own enumeration. */
function* programTypes(session: Session): Walk<Map<number, string>> {
  const type = (yield* session.kernel.loadTypes()).find('bpf_prog_type');
  const values = type?.kind === 'enum' ? type.values : [];
  return new Map(
    values
      .filter(({ name }) => name.startsWith(TYPE_PREFIX))
      .map(({ name, value }) => [Number(value), name.slice(TYPE_PREFIX.length).toLowerCase()]),
  );
}
