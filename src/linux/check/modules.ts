import { listOf } from '../list.ts';
import { moduleList } from '../modules.ts';
import type { Session } from '../session.ts';
import { hex } from '../text.ts';
import type { Walk } from '../walk.ts';
import type { Finding } from './finding.ts';

/** Modules that are in /sys/module by their kobject and not in the list of modules. */
export function* hiddenModules(session: Session): Walk<Finding[]> {
  const { symbols, layouts } = session.kernel;
  const pointer = symbols.address('module_kset');
  if (pointer === undefined) return [];
  const listed = new Set((yield* moduleList(session)).map((module) => module.gva));
  const set = yield* session.object('kset', yield* session.space.u64(pointer));
  const objects = yield* listOf(session, set.address('list'), 'kobject', 'entry', 'the modules in sysfs');
  const offset = BigInt(layouts.field('moduleKobject', 'kobject').offset);
  const findings: Finding[] = [];
  for (const object of objects) {
    const entry = yield* session.attempt(
      'a module',
      session.object('moduleKobject', object.gva - offset),
      undefined,
    );
    const address = entry?.pointer('module') ?? 0n;
    // Parts of the kernel that are built in have no struct module.
    if (address === 0n || listed.has(address)) continue;
    const module = yield* session.attempt('a module', session.object('module', address), undefined);
    if (module === undefined || module.number('state') !== LIVE) continue;
    findings.push({
      check: 'hidden-module',
      subject: module.text('name'),
      address: hex(address),
      expected: 'in the list of modules',
      found: 'only in /sys/module',
    });
  }
  return findings;
}

const LIVE = 0;
