import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import { listLinks, listOf } from './list.ts';
import type { Obj, Session } from './session.ts';

/** A loaded kernel module, as in /proc/modules. */
export interface Module {
  readonly name: string;
  readonly size: number;
  readonly references: number;
  readonly users: readonly string[];
  readonly state: string;
  /** Where its code starts. */
  readonly base: Gva;
  /** Letters as in /proc/modules: O out of tree, E unsigned, P proprietary, … */
  readonly taints: string;
  /** Of its struct module. */
  readonly address: Gva;
}

export type ModuleObject = Obj<'module'>;

const STATES = ['live', 'loading', 'unloading', 'unformed'];
/** kernel/panic.c, taint_flags: by bit number. */
const TAINTS = 'PFSRMBUDAWCIOELKXTN';
/** A module counts itself. */
const REFERENCE_BASE = 1;
const MAX_MEMORIES = 16;

export function* moduleList(session: Session): Walk<ModuleObject[]> {
  const { symbols } = session.kernel;
  // A kernel that knows its variables and not this one is built without CONFIG_MODULES.
  if (symbols.address('modules') === undefined && symbols.address('init_task') !== undefined) return [];
  return yield* listOf(session, session.symbol('modules'), 'module', 'list', 'the list of modules');
}

export function* modules(session: Session): Walk<Module[]> {
  const rows: Module[] = [];
  for (const module of session.timely(yield* moduleList(session)))
    rows.push(yield* moduleRow(session, module));
  return rows;
}

export function* moduleRow(session: Session, module: ModuleObject): Walk<Module> {
  const taints = module.has('taints') ? module.number('taints') : 0;
  return {
    name: module.text('name'),
    size: yield* session.attempt('a module', sizeOfModule(session, module), 0),
    references: module.has('references') ? module.number('references') - REFERENCE_BASE : 0,
    users: yield* session.attempt('users of a module', usersOf(session, module), []),
    state: STATES[module.number('state')] ?? String(module.number('state')),
    base: module.pointer('base'),
    taints: [...TAINTS].filter((_, bit) => (taints & (1 << bit)) !== 0).join(''),
    address: module.gva,
  };
}

/** A piece of memory of a module. */
export interface ModuleMemory {
  readonly base: Gva;
  readonly size: number;
}

/** One piece for each kind of memory since 6.4, code first; before, one for all that stays. */
export function* memoriesOf(session: Session, module: ModuleObject): Walk<ModuleMemory[]> {
  if (!module.has('memory')) {
    return [{ base: module.pointer('base'), size: module.number('size') }];
  }
  const { layouts } = session.kernel;
  const { size } = layouts.get('moduleMemory');
  const count = Math.min(MAX_MEMORIES, Math.floor(layouts.field('module', 'memory').size / size));
  const memories: ModuleMemory[] = [];
  for (let i = 0; i < count; i++) {
    const memory = yield* session.object('moduleMemory', module.address('memory') + BigInt(i * size));
    memories.push({ base: memory.pointer('base'), size: memory.number('size') });
  }
  return memories;
}

function* sizeOfModule(session: Session, module: ModuleObject): Walk<number> {
  const memories = yield* memoriesOf(session, module);
  const init = module.has('initSize') ? module.number('initSize') : 0;
  return memories.reduce((sum, { size }) => sum + size, init);
}

function* usersOf(session: Session, module: ModuleObject): Walk<string[]> {
  if (!module.has('users')) return [];
  const names: string[] = [];
  const { offset } = session.kernel.layouts.field('moduleUse', 'list');
  for (const link of yield* listLinks(session, module.address('users'), 'users of a module')) {
    const use = yield* session.object('moduleUse', link - BigInt(offset));
    names.push((yield* session.object('module', use.pointer('source'))).text('name'));
  }
  return names;
}
