import { getU64 } from '../../abi/bytes.ts';
import { type Gva, leafMappings } from '../../machine/index.ts';
import { type Walk, wait } from '../../reading/walk.ts';
import { listOf } from '../list.ts';
import { type ModuleObject, moduleList } from '../modules.ts';
import type { Session } from '../session.ts';
import type { Finding } from './finding.ts';

/** Modules that are in sysfs, or in the memory for modules, and not in the list of modules. */
export function* hiddenModules(session: Session): Walk<Finding[]> {
  const listed = new Set((yield* moduleList(session)).map((module) => module.gva));
  const hidden = new Map<Gva, string>();
  const views = [
    ['only in /sys/module', bySysfs(session)],
    ['only in memory', byMemory(session)],
  ] as const;
  for (const [found, view] of views) {
    for (const address of yield* session.attempt('a view of the modules', view, []))
      if (!listed.has(address) && !hidden.has(address)) hidden.set(address, found);
  }
  const findings: Finding[] = [];
  for (const [address, found] of session.timely(hidden)) {
    const module = yield* session.attempt('a module', session.object('module', address), undefined);
    if (module === undefined || !isLive(module)) continue;
    findings.push({
      check: 'hidden-module',
      subject: module.text('name'),
      address,
      expected: 'in the list of modules',
      found,
    });
  }
  return findings;
}

const LIVE = 0;

/** One that is loaded, not what an unloaded one left behind. */
function isLive(module: ModuleObject): boolean {
  return module.number('state') === LIVE && /^[\x21-\x7e]+$/.test(module.text('name'));
}

function* bySysfs(session: Session): Walk<Gva[]> {
  const { symbols, layouts } = session.kernel;
  const pointer = symbols.address('module_kset');
  if (pointer === undefined) return [];
  const set = yield* session.object('kset', yield* session.space.u64(pointer));
  const objects = yield* listOf(session, set.address('list'), 'kobject', 'entry', 'the modules in sysfs');
  const offset = BigInt(layouts.field('moduleKobject', 'kobject').offset);
  const found: Gva[] = [];
  for (const object of session.timely(objects)) {
    const walk = session.object('moduleKobject', object.gva - offset);
    const address = (yield* session.attempt('a module', walk, undefined))?.pointer('module') ?? 0n;
    // Parts of the kernel that are built in have no struct module.
    if (address !== 0n) found.push(address);
  }
  return found;
}

/** Where modules are loaded, behind the kernel's image (Documentation/arch/x86/x86_64/mm.rst). */
const MODULES = 0xffff_ffff_a000_0000n;
const MODULES_END = 0xffff_ffff_fe00_0000n;
const MAX_MAPPINGS = 1 << 17;
const MAX_RUN = 64 << 20;
/** A struct module starts at a cache line. */
const ALIGNMENT = 64;

/** Every struct module has a pointer to itself, by which it is known wherever it is. */
function* byMemory(session: Session): Walk<Gva[]> {
  const { kernel } = session;
  const self = kernel.layouts.get('module').fields.self?.offset;
  if (self === undefined) return [];
  const found: Gva[] = [];
  for (const { gva, size } of session.timely(yield* mappedRuns(session))) {
    const bytes = yield* session.attempt('modules', kernel.readBulk(gva, size), new Uint8Array());
    for (let at = 0; at + self + 8 <= bytes.length; at += ALIGNMENT)
      if (getU64(bytes, at + self) === gva + BigInt(at)) found.push(gva + BigInt(at));
  }
  return found;
}

function* mappedRuns({ kernel }: Session): Walk<{ gva: Gva; size: number }[]> {
  const from = kernel.imageEnd > MODULES ? kernel.imageEnd : MODULES;
  const { mappings } = yield* wait(
    leafMappings(kernel.memory, kernel.paging, { from, to: MODULES_END, limit: MAX_MAPPINGS }),
  );
  const runs: { gva: Gva; size: number }[] = [];
  for (const { gva, size } of mappings) {
    const last = runs.at(-1);
    if (last !== undefined && last.gva + BigInt(last.size) === gva && last.size + size <= MAX_RUN)
      last.size += size;
    else if (size <= MAX_RUN) runs.push({ gva, size });
  }
  return runs;
}
