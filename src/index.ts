export type { Awaitable } from './awaitable.ts';
export { type ErrorDetails, KvmiError } from './error.ts';
export type { ErrorCode } from './error-codes.ts';
export { type IntrospectOptions, introspect } from './introspect.ts';
export type { Gfn, Gpa, Gva, Machine } from './machine/index.ts';
export {
  type Breakpoints,
  connectGuest,
  type Guest,
  type GuestEvent,
  type GuestMemory,
  type GuestVcpu,
  listen,
  type Probe,
  type ProbeHit,
  type Probes,
  type Registers,
  ToolServer,
} from './tool/index.ts';
