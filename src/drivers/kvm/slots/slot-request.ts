import { kvmMemoryRegion } from '../../../abi/kvm.ts';

/** What KVM_SET_USER_MEMORY_REGION is asked for; of size 0, to delete the slot. */
export interface SlotRequest {
  readonly slot: number;
  readonly flags: number;
  readonly gpa: number;
  readonly size: number;
  readonly hva: number;
}

/** Writes a request as KVM has it: struct kvm_userspace_memory_region. */
export function putRequest(
  bytes: Uint8Array,
  at: number,
  { slot, flags, gpa, size, hva }: SlotRequest,
): void {
  kvmMemoryRegion.write(bytes, at, {
    slot,
    flags,
    guest_phys_addr: BigInt(gpa),
    memory_size: BigInt(size),
    userspace_addr: BigInt(hva),
  });
}

export function readRequest(bytes: Uint8Array, at: number): SlotRequest {
  const { slot, flags, guest_phys_addr, memory_size, userspace_addr } = kvmMemoryRegion.read(bytes, at);
  const [gpa, size, hva] = [guest_phys_addr, memory_size, userspace_addr].map(Number) as [
    number,
    number,
    number,
  ];
  return { slot, flags, gpa, size, hva };
}
