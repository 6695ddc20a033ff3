export { type FoundQemu, findQemuMachines } from './discover.ts';
export type { LeftBehind } from './guard/left-behind.ts';
export { QemuMachine } from './machine.ts';
export { openQemu, type QemuTarget } from './open.ts';
