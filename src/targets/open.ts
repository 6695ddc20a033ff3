import type { Gva, Machine } from '../machine/index.ts';
import { chooseMachine, notHookable, ONLY } from './choose.ts';
import { findMachines } from './find.ts';
import type { OpenOptions, Target } from './target.ts';
import { TARGETS } from './targets.ts';

/** The symbols that a target knows of what was opened, by machine. */
const SYMBOLS = new WeakMap<Machine, () => Promise<ReadonlyMap<string, Gva>>>();

/**
 * Opens the machine that `name` means, without touching its guest: the name, UUID or pid of a VM of this host,
 * `-` or nothing for the only one, or a way in with its prefix, such as `qemu:/run/web.qmp`, `libvirt:web`, `kvm:4711`,
 * `file:web.elf` or `embedded:2`. Whoever opened it closes it.
 *
 * @throws KvmiError with code E_NO_VM, E_AMBIGUOUS_VM, E_NOT_HOOKABLE, E_USAGE, or what the driver throws.
 */
export async function openMachine(name: string = ONLY, options: OpenOptions = {}): Promise<Machine> {
  const prefixed = openPrefixed(name, options);
  if (prefixed) return prefixed;
  const found = chooseMachine(name, await findMachines());
  // What cannot be opened says why: it is in use, or it takes more rights.
  const way = found.target ?? found.blocked;
  if (way === undefined) throw notHookable(found);
  options.log?.info(`using ${found.name} (${way})`);
  return openPrefixed(way, options)!;
}

function openPrefixed(name: string, options: OpenOptions): Promise<Machine> | undefined {
  const colon = name.indexOf(':');
  const target = TARGETS.find(({ prefix }) => prefix === name.slice(0, Math.max(0, colon)));
  return target && openTarget(target, name.slice(colon + 1), options);
}

async function openTarget(target: Target, rest: string, options: OpenOptions): Promise<Machine> {
  const machine = await target.open(rest, options);
  if (target.symbols) SYMBOLS.set(machine, () => target.symbols!());
  return machine;
}

/** Symbols of a machine's kernel that are known without looking for Linux in its memory; undefined when none are. */
export function knownSymbols(machine: Machine): Promise<ReadonlyMap<string, Gva>> | undefined {
  return SYMBOLS.get(machine)?.();
}
