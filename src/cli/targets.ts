import { text } from '../input/values.ts';
import type { Machine } from '../machine/index.ts';
import { ONLY } from '../targets/choose.ts';
import { openMachine } from '../targets/open.ts';
import { TARGETS } from '../targets/targets.ts';
import { type Argument, argument, optionalArgument } from './command.ts';
import type { Context } from './context.ts';

/** `qemu:` and the like. */
export const TARGET_PREFIXES = TARGETS.map(({ prefix }) => `${prefix}:`);

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
    ...TARGETS.map(({ prefix, syntax, about }): [string, string] => [`${prefix}:${syntax}`, about]),
  ];
}

/** Opens the VM that the user means; see `openMachine`. */
export function openVm(wanted: string | undefined, { log, unsafe }: Context): Promise<Machine> {
  return openMachine(wanted, { log, unsafe });
}
