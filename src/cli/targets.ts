import { KvmiError } from '../error.ts';
import { type Argument, argument, optionalArgument } from './command.ts';
import type { Context } from './context.ts';
import { discover, type FoundVm, handleOf } from './discover.ts';
import { EMBEDDED_TARGET } from './drivers/embedded.ts';
import { KVM_TARGET } from './drivers/kvm.ts';
import { LIBVIRT_TARGET, QEMU_TARGET } from './drivers/qemu.ts';
import { SNAPSHOT_TARGET } from './drivers/snapshot.ts';
import { didYouMean } from './suggest.ts';
import type { OpenedVm, TargetKind } from './target-kind.ts';
import { text } from './values.ts';

/** Every kind; a driver adds its own here. */
const TARGET_KINDS: readonly TargetKind[] = [
  QEMU_TARGET,
  LIBVIRT_TARGET,
  KVM_TARGET,
  SNAPSHOT_TARGET,
  EMBEDDED_TARGET,
];

/** `qemu:` and the like. */
export const TARGET_PREFIXES = TARGET_KINDS.map(({ prefix }) => `${prefix}:`);

/** Stands for the only VM that runs, where the VM cannot be left out. */
const ONLY = '-';

const ABOUT = 'the VM, see below';
/** For commands that take more after it. */
export const VM: Argument<string> = argument('VM', ABOUT, text);
/** For commands that take nothing else. */
export const OPTIONAL_VM: Argument<string | undefined> = optionalArgument(
  'VM',
  `${ABOUT}; may be left out when exactly one runs`,
  text,
);

/** How a VM can be named, and what that means. */
export function targetTerms(): [term: string, about: string][] {
  return [
    ['NAME', 'the name, UUID or pid of a VM that `kvmi list` shows'],
    [ONLY, 'the only VM that runs on this host'],
    ...TARGET_KINDS.map(({ prefix, syntax, about }): [string, string] => [`${prefix}:${syntax}`, about]),
  ];
}

/**
 * Opens the VM that the user means.
 *
 * @throws KvmiError with code E_NO_VM, E_AMBIGUOUS_VM, E_NOT_HOOKABLE, or what the driver throws.
 */
export async function openVm(wanted: string | undefined, context: Context): Promise<OpenedVm> {
  const prefixed = openPrefixed(wanted ?? ONLY, context);
  if (prefixed) return prefixed;
  const vm = chooseVm(wanted, await discover());
  if (vm.target === undefined) throw notHookable(vm);
  context.log.info(`using ${vm.name} (${vm.target})`);
  return openPrefixed(vm.target, context)!;
}

function openPrefixed(target: string, context: Context): Promise<OpenedVm> | undefined {
  const colon = target.indexOf(':');
  const kind = TARGET_KINDS.find(({ prefix }) => prefix === target.slice(0, Math.max(0, colon)));
  return kind?.open(target.slice(colon + 1), context).then((machine) => ({ machine, kind }));
}

/** The one of `found` that `wanted` means; undefined and `-` mean the only one. */
export function chooseVm(wanted: string | undefined, found: readonly FoundVm[]): FoundVm {
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

function fits(vm: FoundVm, wanted: string): boolean {
  return vm.name === wanted || String(vm.pid) === wanted || vm.uuid === wanted.toLowerCase();
}

function noVmRuns(): KvmiError {
  return new KvmiError('E_NO_VM', 'no VM was found on this host', {
    hint: `Give one as ${TARGET_KINDS.map(({ prefix, syntax }) => `${prefix}:${syntax}`).join(', ')}. A VM of another user is only seen by root.`,
  });
}

function noSuchVm(wanted: string, found: readonly FoundVm[]): KvmiError {
  const names = found.flatMap((vm) => [vm.name, ...(vm.uuid ? [vm.uuid] : [])]);
  const prefixes = TARGET_KINDS.map(({ prefix }) => prefix);
  const kinds = TARGET_KINDS.map(({ prefix, syntax }) => `${prefix}:${syntax}`).join(', ');
  const prefix = wanted.includes(':')
    ? didYouMean(wanted.slice(0, wanted.indexOf(':')), prefixes)
    : undefined;
  return new KvmiError('E_NO_VM', `no VM is called ${wanted}, nor has it as pid or UUID`, {
    hint: prefix ?? didYouMean(wanted, names) ?? `\`kvmi list\` shows what was found. Others: ${kinds}.`,
    data: { vm: wanted },
  });
}

function ambiguous(why: string, candidates: readonly FoundVm[]): KvmiError {
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

function notHookable(vm: FoundVm): KvmiError {
  return new KvmiError(
    'E_NOT_HOOKABLE',
    `${vm.name} cannot be hooked: ${vm.reason ?? 'no way into it is known'}`,
    {
      hint: '`kvmi doctor` shows what is missing and how to get it.',
      data: { vm: handleOf(vm) },
    },
  );
}
