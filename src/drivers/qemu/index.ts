export { type FoundQemu, findQemuMachines } from './find.ts';
export { QemuMachine } from './machine.ts';
export { openQemu, type QemuTarget } from './open.ts';
