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
  ps: {
    summary: 'show the processes of a Linux guest',
    load: async () => (await import('./processes.ts')).ps,
  },
  tree: {
    summary: 'show the processes of a Linux guest as a tree',
    load: async () => (await import('./processes.ts')).tree,
  },
  threads: {
    summary: 'show the threads of a Linux guest',
    load: async () => (await import('./processes.ts')).threads,
  },
  env: {
    summary: 'show the environment of a process in a Linux guest',
    load: async () => (await import('./processes.ts')).env,
  },
  maps: {
    summary: 'show the memory map of a process in a Linux guest',
    load: async () => (await import('./files.ts')).maps,
  },
  files: {
    summary: 'show the open files of a Linux guest',
    load: async () => (await import('./files.ts')).files,
  },
  sockets: {
    summary: 'show the sockets of a Linux guest',
    load: async () => (await import('./files.ts')).sockets,
  },
  mounts: {
    summary: 'show the mounted file systems of a Linux guest',
    load: async () => (await import('./files.ts')).mounts,
  },
  modules: {
    summary: 'show the kernel modules of a Linux guest',
    load: async () => (await import('./kernel.ts')).modules,
  },
  dmesg: {
    summary: 'show the kernel log of a Linux guest',
    load: async () => (await import('./kernel.ts')).dmesg,
  },
  system: {
    summary: 'show what a Linux guest is: kernel, name, clock',
    load: async () => (await import('./kernel.ts')).system,
  },
  probes: {
    summary: 'show what ftrace, kprobes and eBPF have hooked in a Linux guest',
    load: async () => (await import('./kernel.ts')).probes,
  },
  bpf: {
    summary: 'show the eBPF programs of a Linux guest',
    load: async () => (await import('./kernel.ts')).bpf,
  },
  check: {
    summary: 'look for signs of manipulation in a Linux guest',
    load: async () => (await import('./check.ts')).check,
  },
  symbols: {
    summary: "show symbols of a Linux guest's kernel and modules, by name or by address",
    load: async () => (await import('./symbols.ts')).symbols,
  },
  type: {
    summary: "show a type of a Linux guest's kernel",
    load: async () => (await import('./types.ts')).type,
  },
  print: {
    summary: "show the value of a variable of a Linux guest's kernel",
    load: async () => (await import('./types.ts')).print,
  },
  isf: {
    summary: "write a symbol file for Volatility 3, made of a Linux guest's own symbols and types",
    load: async () => (await import('./types.ts')).isf,
  },
  dump: {
    summary: 'write the memory of a VM to a file',
    load: async () => (await import('./dump.ts')).dump,
  },
  verify: {
    summary: 'compare a memory dump with its checksums',
    load: async () => (await import('./verify.ts')).verify,
  },
  break: {
    summary: 'report each time the guest executes an instruction',
    load: async () => (await import('./break.ts')).breakCommand,
  },
  gdb: {
    summary: 'let GDB debug a VM',
    load: async () => (await import('./gdb.ts')).gdb,
  },
  repair: {
    summary: 'undo what a kvmi that was killed has left in a VM',
    load: async () => (await import('./repair.ts')).repair,
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
