export * from './address.ts';
export * from './capabilities.ts';
export type * from './machine.ts';
export type * from './memory.ts';
export * from './stops.ts';
export type * from './vcpu.ts';
export type * from './views.ts';
