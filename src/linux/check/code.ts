import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import { moduleList } from '../modules.ts';
import type { Session } from '../session.ts';

const MAX_TEXT = 256 << 20;

/** A copy of the kernel's code. */
export interface TextImage {
  readonly start: Gva;
  readonly bytes: Uint8Array;
}

export function textRange(session: Session): { readonly start: Gva; readonly end: Gva } {
  return { start: session.symbol('_stext'), end: session.symbol('_etext') };
}

export function* readText(session: Session): Walk<TextImage> {
  const { start, end } = textRange(session);
  return { start, bytes: yield* session.kernel.readBulk(start, Math.min(Number(end - start), MAX_TEXT)) };
}

/** The code of a module. */
export interface ModuleText extends TextImage {
  readonly module: string;
}

export function* readModuleTexts(session: Session): Walk<ModuleText[]> {
  const texts: ModuleText[] = [];
  for (const module of yield* session.attempt('modules', moduleList(session), [])) {
    const name = module.text('name');
    const size = module.number('textSize');
    if (size > MAX_TEXT) continue;
    const start = module.pointer('base');
    const walk = session.kernel.readBulk(start, size);
    const bytes = yield* session.attempt(`the code of module ${name}`, walk, undefined);
    if (bytes !== undefined) texts.push({ module: name, start, bytes });
  }
  return texts;
}

/** Whether calls in the kernel's text may lead there. */
export type CodeTest = (address: Gva) => boolean;
