import { KVM_MEM } from '../../../abi/kvm.ts';
import { KvmiError } from '../../../error.ts';
import { kernelLayout, type Layout } from './kernel-layout.ts';
import { KernelMemory } from './kernel-memory.ts';

/** A run of guest-physical memory and where its VMM has it (KVM_SET_USER_MEMORY_REGION). */
export interface Memslot {
  readonly slot: number;
  readonly gpa: number;
  readonly size: number;
  /** Address in the VMM. */
  readonly hva: number;
  readonly readonly: boolean;
  /** KVM_MEM flags, where the kernel tells them. */
  readonly flags?: number;
}

const NAMES = [
  'task_struct.files',
  'files_struct.fdt',
  'fdtable.fd',
  'file.private_data',
  'kvm.memslots',
  'kvm_memslots.generation',
  'kvm_memslots.gfn_tree',
  'kvm_memslots.node_idx',
  'kvm_memory_slot',
  'kvm_memory_slot.gfn_node',
  'kvm_memory_slot.base_gfn',
  'kvm_memory_slot.npages',
  'kvm_memory_slot.userspace_addr',
  'kvm_memory_slot.flags',
  'kvm_memory_slot.id',
  'kvm_vcpu.kvm',
  'kvm_vcpu.pid',
  'kvm_vcpu.arch',
  'kvm_vcpu_arch.complete_userspace_io',
  'pid.numbers',
] as const;

const RB_NODE_SIZE = 24;
const RB_RIGHT = 8;
const RB_LEFT = 16;
const PAGE_SHIFT = 12n;
/** More than KVM allows; a tree that changes while it is read must not be followed for ever. */
const MAX_SLOTS = 32_768;
const ATTEMPTS = 5;
/** A slot that is being deleted or moved. */
const KVM_MEMSLOT_INVALID = 1 << 16;

/** What the kernel knows of VMs and has no system call for. Descriptors are those of this process. */
export class KernelView {
  readonly #layout: Layout;
  readonly #memory: KernelMemory;

  /** @throws KvmiError with code E_NO_BTF or E_NO_BPF. */
  constructor() {
    // The rights first: they are found out at once.
    this.#memory = new KernelMemory();
    try {
      this.#layout = kernelLayout(NAMES);
    } catch (error) {
      this.#memory.close();
      throw error;
    }
  }

  #at(name: (typeof NAMES)[number]): bigint {
    return BigInt(this.#layout[name]!);
  }

  /** Identifies the VM that a descriptor is. */
  vm(vmFd: number): bigint {
    return this.#privateData(vmFd);
  }

  /** Identifies the VM of a vCPU, and tells the thread that ran it last (in the first PID namespace). */
  vcpu(vcpuFd: number): { vm: bigint; tid: number | undefined } {
    const vcpu = this.#privateData(vcpuFd);
    const vm = this.#memory.pointer(vcpu + this.#at('kvm_vcpu.kvm'));
    const pid = this.#memory.pointer(vcpu + this.#at('kvm_vcpu.pid'));
    if (pid === 0n) return { vm, tid: undefined };
    return { vm, tid: this.#memory.read(pid + this.#at('pid.numbers'), 4).readInt32LE(0) };
  }

  /** Whether the next KVM_RUN of a vCPU has an exit to complete before its state is that between two instructions. */
  exitPending(vcpuFd: number): boolean {
    const arch = this.#privateData(vcpuFd) + this.#at('kvm_vcpu.arch');
    return this.#memory.pointer(arch + this.#at('kvm_vcpu_arch.complete_userspace_io')) !== 0n;
  }

  /** What `private_data` of an open file is. */
  #privateData(fd: number): bigint {
    const memory = this.#memory;
    const files = memory.pointer(memory.currentTask() + this.#at('task_struct.files'));
    const table = memory.pointer(files + this.#at('files_struct.fdt'));
    const file = memory.pointer(memory.pointer(table + this.#at('fdtable.fd')) + 8n * BigInt(fd));
    return memory.pointer(file + this.#at('file.private_data'));
  }

  /** The slots of a VM. */
  memslots(vmFd: number): Memslot[] {
    const memory = this.#memory;
    const kvm = this.vm(vmFd);
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const slots = memory.pointer(kvm + this.#at('kvm.memslots'));
      const generation = memory.pointer(slots + this.#at('kvm_memslots.generation'));
      const found = this.#readTree(slots);
      const unchanged =
        memory.pointer(kvm + this.#at('kvm.memslots')) === slots &&
        memory.pointer(slots + this.#at('kvm_memslots.generation')) === generation;
      if (found && unchanged) return found.sort((a, b) => a.gpa - b.gpa);
    }
    throw new KvmiError('E_AGAIN', 'the memory slots of the VM change faster than they can be read', {
      hint: 'Try again.',
    });
  }

  #readTree(slots: bigint): Memslot[] | undefined {
    const memory = this.#memory;
    const index = memory.read(slots + this.#at('kvm_memslots.node_idx'), 4).readUInt32LE(0) & 1;
    const nodeOffset = this.#at('kvm_memory_slot.gfn_node') + BigInt(index * RB_NODE_SIZE);
    const found: Memslot[] = [];
    const pending = [memory.pointer(slots + this.#at('kvm_memslots.gfn_tree'))];
    for (let node = pending.pop(); node !== undefined; node = pending.pop()) {
      if (node === 0n) continue;
      if (found.length >= MAX_SLOTS) return undefined;
      const slot = this.#readSlot(node - nodeOffset);
      if (slot) found.push(slot);
      const links = memory.read(node, RB_NODE_SIZE);
      pending.push(links.readBigUInt64LE(RB_RIGHT), links.readBigUInt64LE(RB_LEFT));
    }
    return found;
  }

  #readSlot(address: bigint): Memslot | undefined {
    const bytes = this.#memory.read(address, this.#layout.kvm_memory_slot!);
    const word = (name: (typeof NAMES)[number]): bigint => bytes.readBigUInt64LE(this.#layout[name]);
    const flags = bytes.readUInt32LE(this.#layout['kvm_memory_slot.flags']);
    if (flags & KVM_MEMSLOT_INVALID) return undefined;
    return {
      slot: bytes.readUInt16LE(this.#layout['kvm_memory_slot.id']),
      gpa: Number(word('kvm_memory_slot.base_gfn') << PAGE_SHIFT),
      size: Number(word('kvm_memory_slot.npages') << PAGE_SHIFT),
      hva: Number(word('kvm_memory_slot.userspace_addr')),
      readonly: (flags & KVM_MEM.READONLY) !== 0,
      flags,
    };
  }

  close(): void {
    this.#memory.close();
  }
}
