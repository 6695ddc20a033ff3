export { type ServeEnd, type ServeOptions, serve } from './device-manager.ts';
export { type HookRequest, Introspection, type IntrospectionOptions } from './introspection.ts';
export { formatUuid, type Log, SILENT, vmLabel } from './log.ts';
