import { putU32, putU64 } from '../../../abi/bytes.ts';
import { KVM, kvmMemoryRegion } from '../../../abi/kvm.ts';
import { SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { type Mapping, mappings } from '../../../system/proc.ts';
import type { Call, Slot } from '../thread/agent.ts';
import { type CallsWithin, withinStoppedVmm } from '../thread/stopped-vmm.ts';
import { Vmm } from '../thread/vmm.ts';
import type { Memslot } from './memslots.ts';
import { type Ask, type OracleCall, SlotOracle } from './slot-oracle.ts';
import { putRequest } from './slot-request.ts';
import type { VmFile } from './vm-file.ts';

const ARGUMENT_STRIDE = kvmMemoryRegion.size;
/** No slot has so many pages. */
const BEYOND_PAGES = 2n ** 48n;

/**
 * The memory slots of a VM, asked from within its VMM, which is stopped meanwhile; see {@link SlotOracle}. When this
 * process is killed the series of calls that is being made is completed, and the VMM goes on.
 *
 * @throws KvmiError with code E_NO_MEMSLOTS, E_AGAIN or E_PERMISSION.
 */
export function oracleMemslots(file: VmFile, liftFilters: boolean): Memslot[] {
  const vmm = new Vmm(file, liftFilters);
  const vmFd = file.ownersDescriptor();
  try {
    if (vmFd === undefined) throw new KvmiError('E_NO_VM', `process ${file.pid} has closed the VM`);
    const fd = vmFd;
    return withinStoppedVmm(
      vmm,
      // Without the agent, which is a mapping, too, but not of the guest.
      () => possibleMappings(mappings(vmm.pid)),
      (within, mapped) => askWithin(fd, within, mapped),
    );
  } finally {
    vmm.close();
  }
}

function askWithin(vmFd: number, { slot, call }: CallsWithin, mapped: readonly Mapping[]): Memslot[] {
  const ask: Ask = (questions) => {
    const results = call(questions.map((question, i) => encode(slot, question, i, vmFd)));
    return results.map((result) => Number(-result));
  };
  return new SlotOracle(ask, mapped).find();
}

/** What may be memory of a guest: not a stack, nor of a file that has code for the VMM, too. */
function possibleMappings(all: readonly Mapping[]): Mapping[] {
  const programs = new Set(all.filter(({ permissions }) => permissions[2] === 'x').map(({ name }) => name));
  programs.delete('');
  return all.filter(
    ({ permissions, name }) => permissions[0] === 'r' && name[0] !== '[' && !programs.has(name),
  );
}

function encode(slot: Slot, call: OracleCall, index: number, vmFd: number): Call {
  const at = index * ARGUMENT_STRIDE;
  const address = slot.argumentAddress + at;
  if (call.ask === 'dirty-log') {
    slot.argument.fill(0, at, at + ARGUMENT_STRIDE);
    putU32(slot.argument, at, call.slot);
    putU64(slot.argument, at + 8, BEYOND_PAGES);
    return [SYS.ioctl, vmFd, KVM.CLEAR_DIRTY_LOG, address];
  }
  putRequest(slot.argument, at, call);
  return [SYS.ioctl, vmFd, KVM.SET_USER_MEMORY_REGION, address];
}
