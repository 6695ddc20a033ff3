export {
  type Gfn,
  GPA_LIMIT,
  type Gpa,
  type Gva,
  gfnOf,
  PAGE_SHIFT,
  PAGE_SIZE,
  pageOffset,
} from './address.ts';
export { attachedAlready } from './busy.ts';
export {
  CAPABILITY_NAMES,
  type Capabilities,
  CapabilityError,
  type CapabilityName,
  capabilitiesOf,
  requireCapability,
  requireTrap,
  type Support,
} from './capabilities.ts';
export { type LeafFilter, type LeafMapping, type LeafMappings, leafMappings } from './leaf-mappings.ts';
export type { Machine, MachineHandler, PreUnhookReason } from './machine.ts';
export type { MemoryRegion, PhysicalMemory } from './memory.ts';
export { memoryEnd, readExactly } from './memory-access.ts';
export { CachedMemory, type CacheOptions, cached } from './middleware/cached.ts';
export { type FaultPlan, faulty } from './middleware/faulty.ts';
export { type AccessMetrics, type MemoryMetrics, type MeteredMemory, metered } from './middleware/metered.ts';
export {
  locatePage,
  type PageLocation,
  type PageTableEntry,
  type PageWalk,
  type TranslationFault,
  translate,
  walk,
} from './page-walk.ts';
export { type Paging, type PagingMode, pagingOf } from './paging.ts';
export type {
  MachineProbeHandler,
  MachineProbeKind,
  MachineProbes,
  ProbeAnswer,
  ProbePort,
  ProbePortHandler,
} from './probes.ts';
export { type BackedRegion, bytesBackend, type RegionBackend, RegionMemory } from './region-memory.ts';
export {
  ACCESS,
  type Answer,
  CONTINUE,
  CRASH,
  DESCRIPTOR_TABLE,
  type DescriptorTable,
  type InterceptedCr,
  REFUSE,
  RETRY,
  type Stop,
  type StopKind,
  type Trap,
  type TrapKind,
} from './stops.ts';
export { Tlb } from './tlb.ts';
export type { CpuidLeaf, Exception, Vcpu } from './vcpu.ts';
export type { Frames, Views } from './views.ts';
export { readVirtual, writeVirtual } from './virtual-memory.ts';
export { MachineWrapper } from './wrapper.ts';
