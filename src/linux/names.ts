import type { Type } from '../btf/types.ts';
import type { Gva } from '../machine/index.ts';
import type { Names } from '../reading/expression.ts';
import type { Walk } from '../reading/walk.ts';
import { VARIABLES } from './layout.ts';
import { moduleSymbols } from './module-symbols.ts';
import { moduleTypes, typeNamed } from './module-types.ts';
import type { Session } from './session.ts';

/** Names of the kernel, or else of a module; `MODULE:NAME` is that of the module. */
export function namesOf(session: Session): Names {
  return {
    address: (name) => addressOf(session, name),
    type: (name) => typeNamed(session, name),
    variable: (name) => typeOfVariable(session, name),
  };
}

function* typeOfVariable(session: Session, qualified: string): Walk<Type | undefined> {
  const [module, name] = splitQualified(qualified);
  if (module === undefined) {
    const types = yield* session.kernel.loadTypes();
    const known = VARIABLES[name];
    const type = types.variable(name) ?? (known === undefined ? undefined : types.find(known));
    if (type !== undefined) return type;
  }
  for (const each of yield* moduleTypes(session)) {
    const type = module === undefined || each.module === module ? each.types.variable(name) : undefined;
    if (type !== undefined) return type;
  }
  return undefined;
}

function* addressOf(session: Session, qualified: string): Walk<Gva | undefined> {
  const [module, name] = splitQualified(qualified);
  const address = module === undefined ? session.kernel.symbols.address(name) : undefined;
  if (address !== undefined) return address;
  return (yield* moduleSymbols(session, module)).find((symbol) => symbol.name === name)?.address;
}

function splitQualified(text: string): [module: string | undefined, name: string] {
  const colon = text.indexOf(':');
  return colon < 0 ? [undefined, text] : [text.slice(0, colon), text.slice(colon + 1)];
}
