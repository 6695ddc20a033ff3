export { Breakpoint, type BreakpointHandler } from './breakpoint.ts';
export type { BreakpointOptions, Breakpoints } from './breakpoints.ts';
export { type ConnectGuestOptions, connectGuest } from './connect.ts';
export type {
  ActionOf,
  Answer,
  AnswerDetails,
  AnyEvent,
  EventHandler,
  GuestEvent,
} from './event.ts';
export type { Guest } from './guest.ts';
export type { GuestMemory } from './memory.ts';
export type { PageAccess } from './page-access.ts';
export {
  Probe,
  type ProbeHandler,
  ProbeHit,
  type ProbeKind,
  type ProbeOptions,
  type Probes,
  type SymbolResolver,
} from './probes.ts';
export type { Registers } from './registers.ts';
export { type ListenOptions, listen, ToolServer } from './server.ts';
export type { StepHandler } from './singlestep.ts';
export type { GuestVcpu, Paused } from './vcpu.ts';
export type { GuestViews } from './views.ts';
export type { VirtualMemory } from './virtual-memory.ts';
