export { attachKvm } from './attach.ts';
export type { KvmMachine } from './machine.ts';
export { type RunOptions, runUnderKvmi } from './run.ts';
