import { existsSync } from 'node:fs';
import { KvmiError } from '../error.ts';
import { didYouMean } from '../input/suggest.ts';
import { handleOf } from './find.ts';
import type { FoundMachine } from './found.ts';
import { TARGETS } from './targets.ts';

/** Stands for the only VM that runs, where the VM cannot be left out. */
export const ONLY = '-';

/** The one of `found` that `wanted` means; undefined and `-` mean the only one. */
export function chooseMachine(wanted: string | undefined, found: readonly FoundMachine[]): FoundMachine {
  if (wanted === undefined || wanted === ONLY) {
    if (found.length === 1) return found[0]!;
    throw found.length === 0 ? noVmRuns() : ambiguous('more than one VM runs', found);
  }
  const fitting = found.filter((vm) => fits(vm, wanted));
  if (fitting.length === 1) return fitting[0]!;
  throw fitting.length === 0
    ? noSuchVm(wanted, found)
    : ambiguous(`more than one VM is called ${wanted}`, fitting);
}

function fits(vm: FoundMachine, wanted: string): boolean {
  return vm.name === wanted || String(vm.pid) === wanted || vm.uuid === wanted.toLowerCase();
}

function noVmRuns(): KvmiError {
  return new KvmiError('E_NO_VM', 'no VM was found on this host', {
    hint: `Give one as ${TARGETS.map(({ prefix, syntax }) => `${prefix}:${syntax}`).join(', ')}. A VM of another user is only seen by root.`,
  });
}

function noSuchVm(wanted: string, found: readonly FoundMachine[]): KvmiError {
  const names = found.flatMap((vm) => [vm.name, ...(vm.uuid ? [vm.uuid] : [])]);
  const prefixes = TARGETS.map(({ prefix }) => prefix);
  const kinds = TARGETS.map(({ prefix, syntax }) => `${prefix}:${syntax}`).join(', ');
  const prefix = wanted.includes(':')
    ? didYouMean(wanted.slice(0, wanted.indexOf(':')), prefixes)
    : undefined;
  const file = existsSync(wanted) ? `Did you mean file:${wanted}?` : undefined;
  return new KvmiError('E_NO_VM', `no VM is called ${wanted}, nor has it as pid or UUID`, {
    hint:
      file ?? prefix ?? didYouMean(wanted, names) ?? `\`kvmi list\` shows what was found. Others: ${kinds}.`,
    data: { vm: wanted },
  });
}

function ambiguous(why: string, candidates: readonly FoundMachine[]): KvmiError {
  // One process may have several VMs.
  const pids = new Set(candidates.map(({ pid }) => pid));
  const handles = candidates.map((vm) =>
    pids.size < candidates.length && vm.target !== undefined ? vm.target : handleOf(vm),
  );
  const list = candidates.map((vm, i) => `${handles[i]} (${vm.name})`);
  return new KvmiError('E_AMBIGUOUS_VM', `${why}: ${list.join(', ')}`, {
    hint: `Say which: ${handles.join(' or ')}.`,
    data: { candidates: handles },
  });
}

export function notHookable(vm: FoundMachine): KvmiError {
  return new KvmiError(
    'E_NOT_HOOKABLE',
    `${vm.name} cannot be hooked: ${vm.reason ?? 'no way into it is known'}`,
    {
      hint: vm.remedy ?? '`kvmi doctor` shows what is missing and how to get it.',
      data: { vm: handleOf(vm) },
    },
  );
}
