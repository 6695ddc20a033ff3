export { type AttachOptions, attachKvm, type MachineSafety } from './attach.ts';
export { type DoctorRow, doctorKvm } from './doctor.ts';
export { findKvmMachines, type KvmMachineRow } from './find.ts';
export { KvmMachine } from './machine.ts';
