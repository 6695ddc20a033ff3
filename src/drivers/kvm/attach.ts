import { KvmiError } from '../../error.ts';
import { kvmDescriptors, statusNumber } from '../../system/proc.ts';
import { kvmCapabilities } from './capabilities.ts';
import { kvmFlavour } from './flavour.ts';
import { KvmMachine, type KvmMachineOptions } from './machine.ts';
import { oracleMemslots } from './slots/oracle-memslots.ts';
import { VmFile } from './slots/vm-file.ts';
import { kernel } from './thread/vmm.ts';

export interface AttachOptions {
  readonly pid: number;
  /** Which VM of the process, by its descriptor there. Needed only when it has several. */
  readonly vm?: number;
  /** See {@link MachineSafety}. */
  readonly unsafe?: boolean;
}

/** Whether things may be armed that can harm the VM when this process is killed. */
export interface MachineSafety {
  /**
   * MSR traps on a VM with several vCPUs: a guard process takes them back a few milliseconds after this one was killed;
   * a VMM whose guest writes to a trapped MSR before that may fail (QEMU aborts). And events of a VMM with a seccomp
   * filter that does not let its vCPU threads disarm: the kernel ends it then. And page traps for reads and fetches,
   * which take the page out of the memory slots of the VM: accesses may reach the VMM as those to a device for some
   * milliseconds after this process was killed, and the VMM must not change that memory. Default false: not available.
   */
  readonly unsafe?: boolean;
}

/** How the memory slots of a VM are found. */
type MemslotProvider = KvmMachineOptions['memslots'];

/** The memory slots of a VM as the kernel has them. */
export const kernelMemslots: MemslotProvider = (vm) => {
  const view = kernel();
  if (typeof view === 'string') throw noMemslots(view);
  return view.memslots(vm.held);
};

function noMemslots(why: string): KvmiError {
  return new KvmiError('E_NO_MEMSLOTS', `the VM's memory cannot be found in its VMM: ${why}`, {
    hint: 'Run as root on a kernel with BTF, or start the VMM with kvmi run.',
  });
}

/**
 * The memory slots of a VM of which the kernel tells nothing, guessed now, before its threads are traced. They are not
 * looked up again; an error is thrown when the memory is needed.
 */
function guessedMemslots(vm: VmFile): MemslotProvider {
  try {
    const slots = oracleMemslots(vm, true);
    return () => slots;
  } catch (error) {
    return () => {
      throw error;
    };
  }
}

/** A machine for a VM descriptor that is held. */
export function machineOf(
  file: VmFile,
  {
    unsafe = false,
    liftFilters = false,
    memslots = kernelMemslots,
  }: MachineSafety & Partial<Pick<KvmMachineOptions, 'liftFilters' | 'memslots'>> = {},
): KvmMachine {
  const capabilities = kvmCapabilities(kvmFlavour());
  return new KvmMachine(file, { capabilities, unsafe, liftFilters, memslots });
}

/**
 * The VM of a VMM that runs already.
 *
 * This thread traces the VMM's vCPU threads from the machine's `attach` to its `detach`; nothing else in the process
 * may wait for them. Only the main thread can do it.
 *
 * @throws KvmiError with code E_NO_VM, E_AMBIGUOUS, E_OWN_CHILD, E_PERMISSION or E_NO_FFI.
 */
export function attachKvm({ pid, vm, unsafe = false }: AttachOptions): KvmMachine {
  if (statusNumber(pid, 'PPid') === process.pid) {
    throw new KvmiError('E_OWN_CHILD', `process ${pid} was started by this one`, {
      hint: 'Node.js waits for its own children and would take their stops. Start the VMM from a shell, or with kvmi run.',
    });
  }
  const { vms } = kvmDescriptors(pid);
  const fd = vm ?? vms[0];
  if (fd === undefined || !vms.includes(fd)) {
    throw new KvmiError(
      'E_NO_VM',
      statusNumber(pid, 'Pid') === undefined
        ? `there is no process ${pid}`
        : `process ${pid} has no VM${vm === undefined ? '' : ` with descriptor ${vm}`}`,
      {
        hint: "kvmi list shows the VMs of this host. Other users' processes can only be seen by root.",
      },
    );
  }
  if (vm === undefined && vms.length > 1) {
    throw new KvmiError(
      'E_AMBIGUOUS',
      `process ${pid} has ${vms.length} VMs: descriptors ${vms.join(', ')}`,
      {
        hint: 'Name one of the descriptors.',
        data: { vms },
      },
    );
  }
  const file = new VmFile(pid, fd);
  const memslots = typeof kernel() === 'string' ? guessedMemslots(file) : kernelMemslots;
  return machineOf(file, { unsafe, liftFilters: true, memslots });
}
