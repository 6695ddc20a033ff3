import { Btf } from '../btf/btf.ts';
import type { Type } from '../btf/types.ts';
import type { Gva } from '../machine/index.ts';
import type { Walk } from '../reading/walk.ts';
import { listOf } from './list.ts';
import type { Session } from './session.ts';

/** The types of one module, which go on from those of the kernel. */
export interface ModuleTypes {
  readonly module: string;
  readonly types: Btf;
}

const MAX_BTF = 16 << 20;
const MAX_TOTAL = 64 << 20;

/** BTF of the loaded modules, as in /sys/kernel/btf; none unless the kernel's own types are BTF. */
export function* moduleTypes(session: Session): Walk<ModuleTypes[]> {
  const { symbols, layouts } = session.kernel;
  const head = symbols.address('btf_modules');
  const base = yield* session.kernel.loadTypes();
  if (head === undefined || !(base instanceof Btf) || layouts.get('btfModule').size === 0) return [];
  const found: ModuleTypes[] = [];
  let total = 0;
  for (const entry of yield* listOf(session, head, 'btfModule', 'list', "the modules' types")) {
    const btf = yield* session.attempt(
      'the types of a module',
      session.object('btf', entry.pointer('btf')),
      undefined,
    );
    if (btf === undefined) continue;
    const module = btf.text('name');
    total += btf.number('size');
    if (btf.number('size') > MAX_BTF || total > MAX_TOTAL) {
      session.note(`the types of module ${module} are too large`);
      break;
    }
    const types = yield* session.attempt(
      `the types of module ${module}`,
      read(session, btf.pointer('data'), btf.number('size'), base),
      undefined,
    );
    if (types !== undefined) found.push({ module, types });
  }
  return found;
}

function* read(session: Session, data: Gva, size: number, base: Btf): Walk<Btf> {
  return new Btf(yield* session.kernel.readBulk(data, size), base);
}

const QUALIFIED = /^\s*(?:([\w-]+):)?\s*(?:(?:struct|union|enum)\s+)?(.*?)\s*$/s;

/** A type of the kernel, or else of a module, by its name; `MODULE:NAME` is that of the module. */
export function* typeNamed(session: Session, wanted: string): Walk<Type | undefined> {
  const [, module, name = ''] = QUALIFIED.exec(wanted) ?? [];
  if (module === undefined) {
    const type = (yield* session.kernel.loadTypes()).find(name);
    if (type !== undefined) return type;
  }
  for (const each of yield* moduleTypes(session)) {
    if (module !== undefined && each.module !== module) continue;
    const type = each.types.find(name);
    if (type !== undefined) return type;
  }
  return undefined;
}
