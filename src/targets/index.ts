export { type FoundMachine, findMachines } from './find.ts';
export { openMachine } from './open.ts';
export { type SymbolResolver, symbolsOf } from './symbols.ts';
export type { OpenOptions, TargetLog } from './target.ts';
