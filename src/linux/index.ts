export { Btf } from '../btf/btf.ts';
export type {
  ArrayType,
  EnumType,
  Field,
  FloatType,
  IntType,
  Member,
  Place,
  PointerType,
  Step,
  StructType,
  Type,
  TypedefType,
  TypeSource,
  VoidType,
} from '../btf/types.ts';
export type { TypedValue } from '../reading/expression.ts';
export type { QueryOptions, Rows } from '../reading/question.ts';
export type { OnProgress, Progress } from '../reading/scan.ts';
export { hex, printable } from '../reading/text.ts';
export { Pointer, type TypeRow, type Value } from '../reading/values.ts';
export { forAll, run, type Walk, wait } from '../reading/walk.ts';
export type { BpfProgram } from './bpf.ts';
export { defaultCacheDirectory } from './cache.ts';
export {
  type Baseline,
  baselineFromBytes,
  baselineToBytes,
  type CheckOptions,
  type Finding,
  type Hook,
} from './check/index.ts';
export type { EnvironmentVariable } from './environment.ts';
export type { OpenFile } from './files.ts';
export { isf } from './isf.ts';
export { type IsfFile, isfText } from './isf-format.ts';
export type { Kernel } from './kernel.ts';
export { readKernelFile } from './kernel-file.ts';
export { type FindOptions, Linux, type LinuxGuest } from './linux.ts';
export type { LogRecord } from './log.ts';
export type { MemoryMap } from './maps.ts';
export type { ModuleSymbol, ModuleSymbolAt } from './module-symbols.ts';
export type { Module } from './modules.ts';
export type { Mount } from './mounts.ts';
export { FILE_COLUMNS, MAP_COLUMNS, MOUNT_COLUMNS, SOCKET_COLUMNS } from './rows/files.ts';
export { FINDING_COLUMNS } from './rows/findings.ts';
export { BPF_COLUMNS, HOOK_COLUMNS, LOG_COLUMNS, MODULE_COLUMNS, SYSTEM_COLUMNS } from './rows/kernel.ts';
export { ENVIRONMENT_COLUMNS, PROCESS_COLUMNS, THREAD_COLUMNS, TREE_COLUMNS } from './rows/processes.ts';
export { TYPE_COLUMNS, VALUE_COLUMNS } from './rows/types.ts';
export { type PlainValue, valuesOf } from './rows/values.ts';
export { Session } from './session.ts';
export type { Socket } from './sockets.ts';
export { type Symbol, type SymbolAt, SymbolTable } from './symbols.ts';
export { symbolsElf } from './symbols-elf.ts';
export type { SystemInfo } from './system.ts';
export type { Process, Thread, TreeRow } from './tasks.ts';
export { typesFromFile } from './types-file.ts';
export { vmcoreinfoText } from './vmcoreinfo-text.ts';
