export type { DumpContents, DumpFormat } from './contents.ts';
export { type DumpOptions, type DumpResult, type DumpSubject, dumpMemory, partialPath } from './dump.ts';
export type { WrittenFormat } from './dump-layout.ts';
export { type DumpManifest, manifestPath } from './dump-manifest.ts';
export { type DumpDamage, type VerifyOptions, verifyDump } from './dump-verify.ts';
export type { DumpProgress } from './dump-writer.ts';
export { SnapshotMachine, SnapshotVcpu } from './machine.ts';
export { type OpenOptions, openSnapshot } from './open.ts';
