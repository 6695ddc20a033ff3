import { KvmiError, messageOf } from '../../error.ts';
import { kvmDescriptors, processes, statusNumber, tracerOf } from '../../system/proc.ts';
import { kernelMemslots } from './attach.ts';
import { nameOf } from './identity.ts';
import { VmFile } from './slots/vm-file.ts';
import { kernel, Vmm } from './thread/vmm.ts';

/** A VM on stock KVM of this host. */
export interface KvmMachineRow {
  readonly pid: number;
  /** The VM's descriptor in the process: what `attachKvm` takes as `vm`. */
  readonly vm: number;
  readonly name: string;
  readonly vcpus: number;
  /** Bytes of guest memory; undefined when they cannot be found out. */
  readonly memory: number | undefined;
  /** Whether `attachKvm` would work, or why not. */
  readonly hookable: true | string;
  /** What to do about that. */
  readonly remedy?: string | undefined;
}

/** The VMs of all processes that this one may look into. */
export function findKvmMachines(): KvmMachineRow[] {
  return processes().flatMap((pid) =>
    pid === process.pid ? [] : kvmDescriptors(pid).vms.flatMap((vm) => row(pid, vm) ?? []),
  );
}

function row(pid: number, vm: number): KvmMachineRow | undefined {
  let file: VmFile | undefined;
  let vmm: Vmm | undefined;
  const base = { pid, vm, name: nameOf(pid) };
  try {
    file = new VmFile(pid, vm);
    vmm = new Vmm(file);
    const vcpus = vmm.vcpuDescriptors().length;
    const memory = memoryOf(file);
    return { ...base, vcpus, memory, hookable: obstacle(pid) ?? true };
  } catch (error) {
    // It ended meanwhile, or nothing can be done about it.
    if (kvmDescriptors(pid).vms.length === 0) return undefined;
    return {
      ...base,
      vcpus: kvmDescriptors(pid).vcpus.length,
      memory: undefined,
      hookable: messageOf(error),
      ...(error instanceof KvmiError && { remedy: error.hint }),
    };
  } finally {
    vmm?.close();
    file?.release();
  }
}

/** Not where it would have to be guessed: that stops the VMM. */
function memoryOf(file: VmFile): number | undefined {
  if (typeof kernel() === 'string') return undefined;
  return kernelMemslots(file).reduce((sum, slot) => sum + (slot.readonly ? 0 : slot.size), 0);
}

function obstacle(pid: number): string | undefined {
  const tracer = tracerOf(pid);
  if (tracer !== undefined) return `process ${tracer} traces it already`;
  if (statusNumber(pid, 'PPid') === process.pid) return 'this process has started it';
  return undefined;
}
