export { type ErrorDetails, KvmiError } from './error.ts';
export type { ErrorCode } from './error-codes.ts';
export { type IntrospectOptions, introspect } from './introspect.ts';
export {
  type Breakpoints,
  connectGuest,
  type Guest,
  type GuestEvent,
  type GuestMemory,
  type GuestVcpu,
  listen,
  type Probes,
  type Registers,
  ToolServer,
} from './tool/index.ts';
