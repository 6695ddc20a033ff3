import { ERRNO } from '../abi/errno.ts';
import { sameAddressSpace, sameFile, VmFile } from '../drivers/kvm/slots/vm-file.ts';
import { Introspection } from '../host/introspection.ts';
import { type Log, logLineOf } from '../host/log.ts';
import type { Machine } from '../machine/index.ts';
import { libc, SystemError, takeDescriptor } from '../system/libc.ts';
import { kvmDescriptors, kvmKind, processOf, statusNumber } from '../system/proc.ts';
import { ProcessMemory } from '../system/process-memory.ts';
import type { DialectName } from '../wire/index.ts';
import {
  argumentSize,
  capabilityVersion,
  dialectOf,
  type InterceptedIoctl,
  isCapabilityCheck,
  type RunDialect,
} from './requests.ts';
import { isSocket, SharedSocketChannel } from './socket-channel.ts';

/** How often it is looked whether a VMM has closed the descriptor of a hooked VM, in ms. */
const LIVENESS_INTERVAL_MS = 200;

export interface SupervisorOptions {
  readonly dialect: RunDialect;
  readonly enabled: boolean;
  readonly log: Log;
  /** The machine behind a VM descriptor of a process. It must not touch the VM before `attach`. */
  readonly machine: (vm: VmFile) => Machine;
}

/** A VM of which a request is being carried out, or that is hooked. */
interface SupervisedVm {
  readonly file: VmFile;
  readonly memory: ProcessMemory;
  readonly machine: Machine;
  introspection: Introspection;
  dialect: DialectName;
  requests: number;
}

/**
 * Answers the introspection ioctls of a VMM as a kernel with KVMI would.
 *
 * It knows nothing of how the requests are intercepted; it reads arguments from the memory of the process that
 * made them, and takes its descriptors.
 */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #vms = new Set<SupervisedVm>();
  #liveness: NodeJS.Timeout | undefined;

  constructor(options: SupervisorOptions) {
    this.#options = options;
  }

  /** What the ioctl returns: 0 or more, a negative errno, or undefined when the kernel is to answer. */
  async answer(ioctl: InterceptedIoctl): Promise<number | undefined> {
    const { tid, fd, request } = ioctl;
    // First whether it is a VM that is known: that takes less than to find out what it is.
    const known = this.#find(tid, fd);
    const kind = known ? 'vm' : kvmKind(tid, fd);
    if (!kind) return undefined;
    if (isCapabilityCheck(request)) return capabilityVersion(ioctl.argument, this.#options.enabled);
    if (kind !== 'vm') return undefined;
    try {
      const vm = known ?? this.#add(tid, fd, dialectOf(request, this.#options.dialect));
      if (!vm || !sameAddressSpace(vm.file.pid, tid)) return -ERRNO.EIO;
      return await this.#carryOut(vm, ioctl);
    } catch (error) {
      // The caller is gone, or closed its descriptor meanwhile.
      if (error instanceof SystemError) return -error.errno;
      throw error;
    }
  }

  async #carryOut(vm: SupervisedVm, { request, argument }: InterceptedIoctl): Promise<number> {
    this.#choose(vm, dialectOf(request, this.#options.dialect));
    vm.requests++;
    try {
      return await vm.introspection.ioctl(request, readArgument(vm.memory, argument, argumentSize(request)));
    } finally {
      vm.requests--;
      this.#settle(vm);
    }
  }

  #find(tid: number, fd: number): SupervisedVm | undefined {
    for (const vm of this.#vms) if (vm.file.is(tid, fd)) return vm;
    return undefined;
  }

  /** Undefined when the VM was created by another process. */
  #add(tid: number, fd: number, dialect: DialectName): SupervisedVm | undefined {
    const pid = processOf(tid);
    if (pid === undefined || isForeign(pid, fd)) return undefined;
    const file = new VmFile(pid, fd);
    const machine = this.#options.machine(file);
    const vm: SupervisedVm = {
      file,
      memory: new ProcessMemory(pid),
      machine,
      introspection: this.#introspect(file, machine, dialect, () => this.#settle(vm)),
      dialect,
      requests: 0,
    };
    this.#vms.add(vm);
    return vm;
  }

  /** A VM speaks the dialect of its first request, and of any later one made while it is not hooked. */
  #choose(vm: SupervisedVm, dialect: DialectName): void {
    if (vm.dialect === dialect || vm.introspection.hooked || vm.requests > 0) return;
    vm.dialect = dialect;
    vm.introspection = this.#introspect(vm.file, vm.machine, dialect, () => this.#settle(vm));
  }

  #introspect(file: VmFile, machine: Machine, dialect: DialectName, settle: () => void): Introspection {
    const { enabled, log } = this.#options;
    const openSocketOf = (fd: number) => openSocket(file.pid, fd);
    const onClosed = (error?: Error): void => {
      if (error) log.error(`${machine.name}: ${logLineOf(error)}`);
      settle();
    };
    return new Introspection(machine, { dialect, enabled, log, openSocket: openSocketOf, onClosed });
  }

  /** Lets go of a VM that is neither hooked nor asked about. */
  #settle(vm: SupervisedVm): void {
    if (vm.introspection.hooked || vm.requests > 0) {
      this.#liveness ??= setInterval(() => this.checkLiveness(), LIVENESS_INTERVAL_MS);
      return;
    }
    if (!this.#vms.delete(vm)) return;
    void vm.machine.close();
    vm.memory.close();
    vm.file.release();
    if (this.#vms.size > 0) return;
    clearInterval(this.#liveness);
    this.#liveness = undefined;
  }

  /** Unhooks VMs whose descriptor was closed, or whose VMM is gone. */
  checkLiveness(): void {
    for (const vm of this.#vms) {
      if (vm.requests > 0 || vm.file.ownersDescriptor() !== undefined) continue;
      vm.requests++;
      void vm.introspection.unhook().then(() => {
        vm.requests--;
        this.#settle(vm);
      });
    }
  }

  /** Unhooks everything. */
  async close(): Promise<void> {
    for (const vm of [...this.#vms]) {
      await vm.introspection.unhook();
      this.#settle(vm);
    }
  }
}

/** The bytes that a request's argument points to; undefined when they cannot be read. */
function readArgument(memory: ProcessMemory, address: number, size: number): Uint8Array | undefined {
  if (size === 0) return undefined;
  const bytes = new Uint8Array(size);
  return memory.read(address, bytes) ? bytes : undefined;
}

/** The socket behind a descriptor of the VMM: the VMM keeps its own. */
function openSocket(pid: number, fd: number): SharedSocketChannel | undefined {
  let taken: number;
  try {
    taken = takeDescriptor(pid, fd);
  } catch (error) {
    if (error instanceof SystemError && error.errno === ERRNO.EBADF) return undefined;
    throw error;
  }
  if (isSocket(taken)) return new SharedSocketChannel(taken, `descriptor ${fd} of process ${pid}`);
  libc().close(taken);
  return undefined;
}

/** KVM refuses every ioctl on a VM that another process created: a descriptor that a fork inherited. */
function isForeign(pid: number, fd: number): boolean {
  for (let ancestor = parentOf(pid); ancestor !== undefined; ancestor = parentOf(ancestor)) {
    const holder = ancestor;
    const inherited = kvmDescriptors(holder).vms.some((vm) => sameFile(holder, vm, pid, fd));
    if (inherited) return !sameAddressSpace(holder, pid);
  }
  return false;
}

/** The parent, up to this process, which has descriptors of its own for every VM that is hooked. */
function parentOf(pid: number): number | undefined {
  const parent = statusNumber(pid, 'PPid');
  return parent === 0 || parent === process.pid ? undefined : parent;
}
