import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readText } from './proc.ts';

const NAME = 'kvmi-guard';

/**
 * Moves this process out of its control group (version 2), so that what ends all processes of that group does not end
 * this one: into a group `kvmi-guard` as near to the root as the system allows. Returns the function that moves it
 * back; undefined where it is not allowed, or there is no such hierarchy.
 */
export function leaveControlGroup(): (() => void) | undefined {
  const root = /^\S+ (\S+) cgroup2 /m.exec(readText('/proc/self/mounts') ?? '')?.[1];
  const own = /^0::(\/.*)$/m.exec(readText('/proc/self/cgroup') ?? '')?.[1];
  if (root === undefined || own === undefined || own.split('/').includes('..')) return undefined;
  for (const ancestor of ancestors(own)) {
    const group = join(root, ancestor, NAME);
    try {
      mkdirSync(group, { recursive: true });
      enter(group);
      return () => {
        enterFirst([own, ...ancestors(own).reverse()].map((each) => join(root, each)));
        removeGroup(group);
      };
    } catch {
      removeGroup(group);
    }
  }
  return undefined;
}

/** From the root down; not the group itself, whose end takes along what is in it. */
function ancestors(own: string): string[] {
  const found: string[] = own === '/' ? ['/'] : [];
  for (let at = own; at !== '/'; ) {
    at = dirname(at);
    found.unshift(at);
  }
  return found;
}

function enter(group: string): void {
  writeFileSync(join(group, 'cgroup.procs'), '0');
}

/** The first group that takes this process: those below may have been removed meanwhile. */
function enterFirst(groups: readonly string[]): void {
  for (const group of groups) {
    try {
      enter(group);
      return;
    } catch {
      // The next one.
    }
  }
}

/** It stays while others are in it. */
function removeGroup(group: string): void {
  try {
    rmdirSync(group);
  } catch {
    // Not empty, or not there.
  }
}
