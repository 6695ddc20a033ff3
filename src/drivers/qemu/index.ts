export { type FoundQemu, findQemuMachines } from './discover.ts';
export { QemuMachine } from './machine.ts';
export { openQemu, type QemuTarget } from './open.ts';
