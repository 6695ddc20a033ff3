import type { Dialect, DialectName } from './dialect.ts';
import { v7 } from './v7.ts';
import { v9 } from './v9.ts';
import { v12 } from './v12.ts';

export { allocate } from './allocate.ts';
export * from './command.ts';
export {
  ACTION,
  type Action,
  type CommandDefinition,
  type Dialect,
  type DialectName,
  type EventDefinition,
  NotInDialectError,
} from './dialect.ts';
export * from './event.ts';
export * from './framing.ts';
export * from './handshake.ts';
export * from './header.ts';
export { changeGfnPlain, changeGfnWithView } from './layouts.ts';
export type * from './names.ts';

/** Every dialect, by name. */
export const DIALECTS: Readonly<Record<DialectName, Dialect>> = { v7, v9, v12 };
