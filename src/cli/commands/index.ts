import type { Command } from '../command.ts';

/** A subcommand by name; its description is loaded when it is needed. */
export interface CommandEntry {
  readonly summary: string;
  /** See Command.runsProgram. */
  readonly runsProgram?: boolean;
  load(): Promise<Command>;
}

/** Every subcommand, in the order in which help shows them. */
export const COMMANDS: Readonly<Record<string, CommandEntry>> = {
  list: {
    summary: 'show the VMs of this host and how each can be hooked',
    load: async () => (await import('./list.ts')).list,
  },
  doctor: {
    summary: 'check what this host allows, and how to get the rest',
    load: async () => (await import('./doctor.ts')).doctor,
  },
  info: {
    summary: 'show a VM: memory map, what can be done with it, and why the rest cannot',
    load: async () => (await import('./info.ts')).info,
  },
  regs: {
    summary: 'show the registers of vCPUs',
    load: async () => (await import('./regs.ts')).regs,
  },
  read: {
    summary: 'read guest memory',
    load: async () => (await import('./read.ts')).read,
  },
  write: {
    summary: 'write guest memory',
    load: async () => (await import('./write.ts')).write,
  },
  break: {
    summary: 'report each time the guest executes an instruction',
    load: async () => (await import('./break.ts')).breakCommand,
  },
  gdb: {
    summary: 'let GDB debug a VM',
    load: async () => (await import('./gdb.ts')).gdb,
  },
  hook: {
    summary: 'hook a VM to an introspection tool, as a device manager does',
    load: async () => (await import('./hook.ts')).hook,
  },
  attach: {
    summary: 'hook a VM on KVM to an introspection tool by the process of its VMM',
    load: async () => (await import('./attach.ts')).attach,
  },
  run: {
    summary: 'run a VMM as on a kernel with KVM introspection',
    runsProgram: true,
    load: async () => (await import('./run.ts')).run,
  },
  completion: {
    summary: 'print a completion script for a shell',
    load: async () => (await import('./completion.ts')).completion,
  },
  version: {
    summary: 'print the version',
    load: async () => (await import('./version.ts')).version,
  },
};

/** The descriptions of all of them. */
export function loadCommands(): Promise<Command[]> {
  return Promise.all(Object.values(COMMANDS).map(({ load }) => load()));
}
