export { findMachines } from './find.ts';
export type { FoundMachine } from './found.ts';
export { openMachine } from './open.ts';
export { type SymbolResolver, symbolsOf } from './symbols.ts';
export type { OpenOptions, TargetLog } from './target.ts';
