export * from './device-manager.ts';
export * from './introspection.ts';
export { formatUuid, type Log, SILENT } from './log.ts';
