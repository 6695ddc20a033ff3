/** What a code of an error stands for; docs/reference/errors.md is made of it. */
interface Explanation {
  readonly meaning: string;
  /** What to do. */
  readonly next: string;
}

const RUN_AGAIN = 'Run the command again; when it stays, report it with the output of `-vv`.';
const CHECK_VM = 'See whether the VM still runs: `kvmi list`.';

/** Every code that an error of kvmi can have. Codes never change their meaning. */
export const ERROR_CODES = {
  E_ABORTED: {
    meaning: 'A memory dump was interrupted.',
    next: 'Run it again: it goes on where it was.',
  },
  E_ADDRESS: {
    meaning: 'A socket address is not `unix:PATH`, `tcp:HOST:PORT` or `vsock:CID:PORT`.',
    next: 'Write it in one of these forms; an IPv6 host goes in brackets: `tcp:[::1]:4321`.',
  },
  E_AGAIN: {
    meaning: 'Something changes faster than it can be read, or cannot be done at this moment.',
    next: 'Try again.',
  },
  E_AMBIGUOUS: {
    meaning: 'A process runs more than one VM.',
    next: 'Name one of the descriptors that the message lists.',
  },
  E_AMBIGUOUS_VM: {
    meaning: 'More than one VM fits.',
    next: 'Give one of the candidates in the message: the pid, the UUID, or `qemu:PATH`.',
  },
  E_ARGUMENT: {
    meaning: 'A program called a function with a value that it does not take.',
    next: 'Correct the call; the message names the value and what is taken.',
  },
  E_BASELINE: {
    meaning: 'A file is no baseline of a guest, a damaged one, or of another boot.',
    next: 'Make a new one with `kvmi check VM --save-baseline FILE` while the guest is well.',
  },
  E_BREAKPOINT_LOST: {
    meaning:
      'An instruction could not be carried out after a hit; its breakpoint was taken out. The guest goes on unharmed.',
    next: 'Set it again, or on the first instruction of the function.',
  },
  E_BTF: {
    meaning: "The kernel's type information (BTF) does not make sense.",
    next: 'Try again when the guest has booted; give the types of its kernel from a vmlinux or ISF file.',
  },
  E_BUSY: {
    meaning:
      'Somebody else holds the VM, or the part of it that is wanted: it is hooked or debugged already.',
    next: 'The message says what is held. End the other program (`kvmi hook`, a debugger, a client of the QMP socket), or wait.',
  },
  E_CLOSED: {
    meaning: 'The connection to the host side ended while something was still to be answered.',
    next: CHECK_VM,
  },
  E_CONNECT: {
    meaning: 'There is no connection to the address.',
    next: 'Start the program that listens there first, and check the path, port and rights.',
  },
  E_COOKIE: {
    meaning: 'A TCP address was given without a cookie: anybody could be at the other end.',
    next: 'Give both ends the same secret (`--cookie-file`), or use `unix:PATH`.',
  },
  E_COOKIE_FILE: {
    meaning: 'The cookie file cannot be read, is empty, or others than its owner may read it.',
    next: 'Make it private: `chmod 600 FILE`.',
  },
  E_CPUID: {
    meaning: 'The CPUID leaves of a vCPU cannot be read now.',
    next: 'Try again when the guest runs; the message has the reason.',
  },
  E_DETACH: {
    meaning: 'Something that the tool had turned on could not be turned off by it.',
    next: 'Nothing: unhooking removes what is left. The message names it.',
  },
  E_DUMP_COMPRESSION: {
    meaning: 'A memory dump is, or is to be, compressed in a way that is not available here.',
    next: 'Unpack it first, or get Zstandard; the hint says which, and how.',
  },
  E_DUMP_DAMAGED: {
    meaning: 'A memory dump is not what it says it is.',
    next: 'It may be cut off or still being written: compare its size, and dump again.',
  },
  E_DUMP_FILE: {
    meaning: 'A memory dump, or its checksums, cannot be read.',
    next: 'Check the path and the rights.',
  },
  E_ELF: {
    meaning: 'A vmlinux file cannot be read.',
    next: 'Give the vmlinux, vmlinuz or Debian package of exactly this kernel.',
  },
  E_EXPRESSION: {
    meaning: 'An expression such as `init_task.comm` cannot be evaluated.',
    next: 'The message says at which part; names are those of the kernel source.',
  },
  E_FIELD: {
    meaning: 'This kernel has not a type or a field that the answer needs.',
    next: 'Its version or configuration is not supported for this question; the message names the field.',
  },
  E_GDB_ADD: {
    meaning: 'QEMU could not add a gdbstub at run time.',
    next: 'The message has the reason that QEMU gives.',
  },
  E_GDB_CLOSED: {
    meaning: 'QEMU closed the gdbstub connection, because somebody removed the stub, or QEMU ends.',
    next: CHECK_VM,
  },
  E_GDB_CONNECT: {
    meaning: "QEMU's gdbstub cannot be reached.",
    next: 'Run on the host of the VM, as its user or as root.',
  },
  E_GDB_PROTOCOL: {
    meaning: 'The gdbstub said something that the GDB remote protocol does not have.',
    next: RUN_AGAIN,
  },
  E_GDB_REFUSED: {
    meaning: 'The gdbstub refused a request.',
    next: 'The message names the request and the answer.',
  },
  E_GDB_TIMEOUT: { meaning: 'The gdbstub did not answer in time.', next: CHECK_VM },
  E_GONE: {
    meaning: 'The VM has ended, or QEMU has been killed or crashed.',
    next: CHECK_VM,
  },
  E_GUARD: {
    meaning:
      'The guard process, which cleans up if this one is killed, could not be started. Nothing was armed.',
    next: 'See whether processes can be started on this host: limits, memory.',
  },
  E_GUEST_MEMORY: {
    meaning: 'Something in guest memory that is needed is not mapped or cannot be written.',
    next: 'The message says what; try again when the guest has booted.',
  },
  E_HANDLER: {
    meaning: "A tool's event handler threw; the guest went on as if the event had not been intercepted.",
    next: 'Correct the handler; the cause has its stack.',
  },
  E_HANDSHAKE: {
    meaning: 'Device manager and tool did not agree: no handshake in time, a wrong size, or a wrong cookie.',
    next: 'Give both the same cookie file, and check that the peer is an introspection tool.',
  },
  E_HOOK: {
    meaning: 'The VM could not be hooked.',
    next: 'The message has the reason; `kvmi doctor` shows what this host allows.',
  },
  E_INTERNAL: {
    meaning: 'A mistake in kvmi: an error that nothing expected.',
    next: 'Report it with the stack that is printed.',
  },
  E_IN_USE: {
    meaning: 'Somebody listens at that socket path, or something that is no socket is there.',
    next: 'Choose another path, or remove the file.',
  },
  E_ISF: {
    meaning: 'An ISF file, which was to give the types of a kernel, lacks something.',
    next: 'Give a symbol file of Volatility 3.',
  },
  E_KALLSYMS: {
    meaning: "The kernel's symbol table does not make sense.",
    next: 'Try again when the guest has booted.',
  },
  E_LAUNCH: {
    meaning: 'A program could not be started under introspection.',
    next: 'See whether it starts without kvmi.',
  },
  E_KERNEL_FILE: {
    meaning: 'A file with a kernel cannot be read or unpacked.',
    next: 'Give the vmlinux, vmlinuz or Debian package (linux-image-…) of exactly the kernel of the guest.',
  },
  E_LIBVIRT: {
    meaning: 'libvirt, or the virsh program, could not be used to reach a domain.',
    next: 'Install libvirt-clients; see `virsh list`. LIBVIRT_DEFAULT_URI chooses the connection.',
  },
  E_LIMIT: {
    meaning: 'More was asked for than there can be.',
    next: 'The message names the limit.',
  },
  E_LISTEN: {
    meaning: 'It is not possible to listen at the address.',
    next: 'Choose another path or port.',
  },
  E_MEMORY_REGIONS: {
    meaning: 'Memory regions of a machine overlap or are not made of whole pages.',
    next: 'Correct the map that the program gives.',
  },
  E_MESSAGE_SIZE: {
    meaning: 'A KVMI message would be larger than a message may be.',
    next: 'Split it: one message carries at most a page of memory.',
  },
  E_MIGRATION: {
    meaning: 'The VM was migrated, or a snapshot of it was made, while it was hooked.',
    next: 'Hook it again where it runs afterwards. The message says when a copy of its memory is not to be used.',
  },
  E_NEEDS_ALLOW: {
    meaning: 'The command changes the guest and was not told that it may.',
    next: 'Add the `--allow-…` option that the message names.',
  },
  E_NOT_BACKED: {
    meaning: 'There is no memory, or no mapping, at an address.',
    next: '`kvmi info VM` shows the memory map.',
  },
  E_NOT_DELIVERED: {
    meaning: 'An exception cannot be delivered to the guest.',
    next: 'The message says what prevents it.',
  },
  E_NOT_FOUND: {
    meaning: 'There is no such program.',
    next: 'Give its path, or add its folder to PATH.',
  },
  E_NOT_HOOKABLE: {
    meaning: 'The VM was found, but there is no way into it.',
    next: 'The message says what is missing; for QEMU it is a QMP socket: `-qmp unix:PATH,server=on,wait=off`.',
  },
  E_NOT_IN_DIALECT: {
    meaning: 'The dialect in use has no such command, event or action.',
    next: 'Use another `--dialect`; docs/reference/protocol.md lists what each one has.',
  },
  E_NOT_MAPPED: {
    meaning: 'A guest-virtual address has no translation in the current address space.',
    next: 'Use an address that is mapped everywhere (the kernel), or wait until its process runs.',
  },
  E_NOT_STARTED: {
    meaning: 'The guest has not started this vCPU yet: it has no state to look at.',
    next: 'Choose another vCPU, or wait until the guest has booted.',
  },
  E_NO_BPF: {
    meaning: 'The kernel of this host refuses BPF.',
    next: 'It needs Linux 5.14 or newer and root, or CAP_BPF and CAP_PERFMON.',
  },
  E_NO_BTF: {
    meaning: 'The kernel of this host has no type information (BTF).',
    next: 'It needs a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it.',
  },
  E_NO_FFI: {
    meaning: 'System calls are not available to this program: koffi is missing or does not fit.',
    next: '`npm install koffi`, on Linux x86-64 with glibc.',
  },
  E_NO_LINUX: {
    meaning: 'No Linux kernel was found in guest memory.',
    next: 'Try again when the guest has booted. Guests without Linux have no symbols, processes and files here.',
  },
  E_NO_MACHINE: {
    meaning: 'A process is no VM, or one that cannot be hooked.',
    next: '`kvmi list` shows what was found and why some cannot be hooked.',
  },
  E_NO_MEMORY: {
    meaning: 'More was to be armed at once than the host can hold.',
    next: 'Arm fewer; the message names the limit.',
  },
  E_NO_MEMSLOTS: {
    meaning: 'The memory of a VM was not found in its VMM.',
    next: 'Run as root, or with CAP_BPF and CAP_PERFMON, on a kernel with BTF: then nothing has to be guessed.',
  },
  E_NO_PROCESS: {
    meaning: 'The guest has no process with that id.',
    next: '`kvmi ps VM` lists its processes.',
  },
  E_NO_TYPES: {
    meaning: 'The kernel has no type information (BTF).',
    next: 'Use a kernel with CONFIG_DEBUG_INFO_BTF, or give its types from a vmlinux or ISF file.',
  },
  E_NO_VM: {
    meaning: 'There is no such VM.',
    next: '`kvmi list` shows what was found; others are reached by `qemu:PATH` or `libvirt:DOMAIN`.',
  },
  E_OUTPUT_FILE: {
    meaning: 'A file cannot be written.',
    next: 'Check that its directory may be written to and that there is room.',
  },
  E_OWN_CHILD: {
    meaning: 'A VMM that this very program has started cannot be attached to.',
    next: 'Start the VMM from a shell.',
  },
  E_PERMISSION: {
    meaning: 'A process may not be traced, or libvirt does not let this user in.',
    next: 'Run as root or with CAP_SYS_PTRACE, and detach other debuggers; `kvmi doctor` tells more.',
  },
  E_PROGRAM: {
    meaning: 'A program that unpacks a file (xz, zstd, …) is not installed.',
    next: 'Install it, or unpack the file first.',
  },
  E_PROTOCOL: {
    meaning: 'The peer sent something that KVMI does not allow.',
    next: 'Check that both ends speak the same dialect.',
  },
  E_QEMU_FACTS: {
    meaning: 'QEMU did not say something about its VM in a form that is understood.',
    next: RUN_AGAIN,
  },
  E_QEMU_MEMORY_MAP: {
    meaning: 'The memory map that QEMU prints was not understood.',
    next: RUN_AGAIN,
  },
  E_QEMU_STATE: {
    meaning: 'The state that QEMU saves was not understood.',
    next: RUN_AGAIN,
  },
  E_QEMU_TARGET: {
    meaning: 'The VM is no x86-64 machine.',
    next: 'Only x86-64 guests can be introspected.',
  },
  E_QMP_CLOSED: { meaning: 'QEMU closed the QMP connection: it has ended.', next: CHECK_VM },
  E_QMP_COMMAND: {
    meaning: 'QEMU refused a monitor command.',
    next: 'The message has the command and the reason that QEMU gives.',
  },
  E_QMP_CONNECT: {
    meaning: 'There is no connection to the QMP socket.',
    next: 'Check the path and the rights; start QEMU with `-qmp unix:PATH,server=on,wait=off`.',
  },
  E_QMP_PROTOCOL: {
    meaning: 'What listens at the QMP socket does not speak QMP.',
    next: 'Check that the path is a QMP socket and not a human monitor or a console.',
  },
  E_QMP_TIMEOUT: {
    meaning: 'QEMU did not answer a monitor command in time.',
    next: CHECK_VM,
  },
  E_REENTRANT: {
    meaning: 'A handler tried to run an embedded machine, from within one of its own stops.',
    next: 'Answer the stop; the machine goes on by itself.',
  },
  E_REPAIR: {
    meaning: 'What a kvmi that was killed has left in the VM is not undone yet.',
    next: 'Run `kvmi repair VM`; the message has the reason when it cannot be done now.',
  },
  E_REPLY: {
    meaning: 'The host side answered a command with an error number.',
    next: 'docs/reference/protocol.md says what the number means for the command.',
  },
  E_RUNNING: {
    meaning: 'A program asked for the state of a vCPU that is not stopped.',
    next: 'Pause it first.',
  },
  E_STEP: {
    meaning: 'A vCPU did not get past an instruction by single-stepping.',
    next: 'Set the breakpoint on another instruction nearby.',
  },
  E_SYMBOL: {
    meaning: 'The kernel has no symbol of that name, or at that address.',
    next: 'A pattern finds names: `kvmi symbols VM "do_sys_*"`. Symbols of data need CONFIG_KALLSYMS_ALL; some exist only in some versions or configurations.',
  },
  E_SYSTEM: {
    meaning: 'A system call failed.',
    next: 'The message has the call and the error.',
  },
  E_TIMEOUT: {
    meaning: 'Something did not happen in time.',
    next: 'Resume the VM when it is stopped; give more time with `--timeout`.',
  },
  E_TRACE: {
    meaning: 'A traced thread did something that was not expected while a system call was carried out in it.',
    next: 'Try again; when it stays, report it with the output of `-vv`.',
  },
  E_TYPE: {
    meaning: 'The kernel has no type of that name.',
    next: 'Names are those of the kernel source, without `struct`: `task_struct`.',
  },
  E_TYPES_FILE: {
    meaning: 'A file that was to give the types of a kernel cannot be read.',
    next: 'Give a kernel with BTF (vmlinux, vmlinuz or Debian package), a copy of /sys/kernel/btf/vmlinux, or an ISF file.',
  },
  E_UNSUPPORTED: {
    meaning: 'The machine, its driver or this host cannot do this; the message has the reason.',
    next: '`kvmi info VM` shows what works and why the rest does not.',
  },
  E_USAGE: {
    meaning: 'The command line is wrong.',
    next: '`kvmi COMMAND --help`.',
  },
  E_VCPU_RUNNING: {
    meaning: 'A program asked a vCPU for its state while it was in the guest.',
    next: 'Ask inside a stop or a request.',
  },
  E_VMLINUX: {
    meaning: 'A vmlinux file does not fit the kernel of the guest.',
    next: 'Give the vmlinux, vmlinuz or Debian package of exactly that kernel.',
  },
} as const satisfies Readonly<Record<string, Explanation>>;

/** What a `KvmiError` can have as its code. */
export type ErrorCode = keyof typeof ERROR_CODES;
