export type { RunDialect } from './requests.ts';
export { type RunOptions, runUnderKvmi } from './run.ts';
