/** How `kvmi` ends, for scripts. Numbers never change their meaning. */
export const EXIT = {
  ok: { code: 0, meaning: 'done' },
  error: { code: 1, meaning: 'an error that no other number is for' },
  usage: { code: 2, meaning: 'wrong arguments, options or addresses' },
  noSuchVm: { code: 3, meaning: 'no such VM, or more than one that fits' },
  permission: { code: 4, meaning: 'no permission, on this host or from --allow-…' },
  unsupported: { code: 5, meaning: 'the VM, its driver or the dialect cannot do this' },
  unknownOs: { code: 6, meaning: 'the guest operating system was not recognised' },
  partial: { code: 7, meaning: 'the result is not complete (only with --strict)' },
  peer: { code: 8, meaning: 'the other end cannot be reached, does not authenticate or breaks the protocol' },
  busy: { code: 9, meaning: 'somebody else holds the VM' },
  alert: { code: 10, meaning: 'an alert: something is not as it should be' },
  timeout: { code: 124, meaning: 'a time-out, --timeout included' },
  interrupted: { code: 130, meaning: 'Ctrl-C, after a clean unhook' },
  terminated: { code: 143, meaning: 'SIGTERM or SIGHUP, after a clean unhook' },
} as const;

export type ExitName = keyof typeof EXIT;
