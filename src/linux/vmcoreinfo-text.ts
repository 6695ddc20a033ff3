import type { Awaitable } from '../awaitable.ts';
import { type PhysicalMemory, translate } from '../machine/index.ts';
import type { OnProgress } from '../reading/scan.ts';
import { run, type Walk, wait } from '../reading/walk.ts';
import { findVmcoreinfo, type Vmcoreinfo } from './vmcoreinfo.ts';

/** Where the kernel's image is mapped (Documentation/arch/x86/x86_64/mm.rst). */
const IMAGE_MAP = 0xffff_ffff_8000_0000n;

/**
 * What the Linux in `memory` says about itself for tools that read crash dumps, as it stands there: `KEY=VALUE` lines.
 * Undefined when there is none. One that an earlier boot left behind is passed over.
 */
export function vmcoreinfoText(
  memory: PhysicalMemory,
  onProgress?: OnProgress,
): Awaitable<string | undefined> {
  return run(findVmcoreinfo(memory, { onProgress }, (info) => textOf(memory, info)));
}

/** The text, when the page tables that it names map themselves where it says. */
function* textOf(memory: PhysicalMemory, info: Vmcoreinfo): Walk<string | undefined> {
  const top = info.symbol('swapper_pg_dir');
  const physicalBase = info.number('phys_base');
  if (top === undefined || physicalBase === undefined || top < IMAGE_MAP) return undefined;
  const root = Number(top + physicalBase - IMAGE_MAP);
  const mode = info.number('pgtable_l5_enabled') === 1n ? '5-level' : '4-level';
  const gpa = yield* wait(translate(memory, { mode, root, nx: true }, top));
  return gpa === root ? info.text : undefined;
}
