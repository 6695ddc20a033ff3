export type { DumpContents, DumpFormat } from './contents.ts';
export {
  type DumpDamage,
  type DumpManifest,
  type DumpOptions,
  type DumpProgress,
  type DumpResult,
  dumpMemory,
  manifestPath,
  verifyDump,
} from './dump.ts';
export { SnapshotMachine, SnapshotVcpu } from './machine.ts';
export { type OpenOptions, openSnapshot } from './open.ts';
