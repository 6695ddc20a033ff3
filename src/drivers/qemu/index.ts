export { findQemuMachines, type QemuProcess } from './discover.ts';
export { QemuMachine } from './machine.ts';
export { openQemu, type QemuTarget } from './open.ts';
