import { putU32, putU64 } from '../../abi/bytes.ts';
import { KVM, kvmMemoryRegion } from '../../abi/kvm.ts';
import { SYS } from '../../abi/linux.ts';
import { KvmiError } from '../../error.ts';
import { type Call, type Slot, SPARE_SLOT } from './agent.ts';
import { SLOT } from './agent-code.ts';
import type { Memslot } from './memslots.ts';
import { type Mapping, mappings } from './proc.ts';
import { type Ask, type OracleCall, SlotOracle } from './slot-oracle.ts';
import { StoppedThreads } from './stopped-threads.ts';
import { type Tracee, withRestart } from './tracee.ts';
import type { VmFile } from './vm-file.ts';
import { Vmm } from './vmm.ts';

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
    const threads = StoppedThreads.stop(vmm);
    try {
      return askWithin(vmm, threads.first, vmFd);
    } finally {
      threads.release();
    }
  } finally {
    vmm.close();
  }
}

function askWithin(vmm: Vmm, tracee: Tracee, vmFd: number): Memslot[] {
  // As they are now: the agent is a mapping, too, but not of the guest.
  const mapped = possibleMappings(mappings(vmm.pid));
  const before = Uint8Array.from(tracee.getRegisters());
  const mask = tracee.getSignalMask();
  const slot = vmm.agentVia(tracee).slot(SPARE_SLOT);
  // Of no vCPU: abandoned, the thread just goes on.
  putU32(slot.bytes, SLOT.vcpuFd, -1);
  putU32(slot.bytes, SLOT.tid, tracee.tid);
  putU32(slot.bytes, SLOT.pid, vmm.pid);
  slot.save(withRestart(before), mask);
  const ask: Ask = (calls) => {
    const results = slot.call(
      tracee,
      calls.map((call, i) => encode(slot, call, i, vmFd)),
    );
    return results.map((result) => Number(-result));
  };
  try {
    return new SlotOracle(ask, mapped).find();
  } finally {
    tracee.setRegisters(before);
    tracee.setSignalMask(mask);
    vmm.removeAgent(tracee);
  }
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
  kvmMemoryRegion.write(slot.argument, at, {
    slot: call.slot,
    flags: call.flags,
    guest_phys_addr: BigInt(call.gpa),
    memory_size: BigInt(call.size),
    userspace_addr: BigInt(call.hva),
  });
  return [SYS.ioctl, vmFd, KVM.SET_USER_MEMORY_REGION, address];
}
