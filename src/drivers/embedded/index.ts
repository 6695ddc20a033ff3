export * from './guest.ts';
export { type Crash, EmbeddedMachine, type EmbeddedMachineOptions, type GuestImage } from './machine.ts';
export { type CrashReason, EmbeddedVcpu } from './vcpu.ts';
