import type { Walk } from '../reading/walk.ts';
import { findTask } from './maps.ts';
import type { Session } from './session.ts';
import { stringsOf } from './tasks.ts';

export interface EnvironmentVariable {
  readonly pid: number;
  readonly name: string;
  readonly value: string;
}

/** The environment that a process was started with. */
export function* environment(session: Session, pid: number): Walk<EnvironmentVariable[]> {
  const task = yield* findTask(session, pid);
  const address = task?.pointer('mm') ?? 0n;
  if (address === 0n) return [];
  const mm = yield* session.object('mm', address);
  const strings = yield* session.attempt(
    `the environment of process ${pid}`,
    stringsOf(session, mm, mm.pointer('envStart'), mm.pointer('envEnd')),
    [],
  );
  return strings
    .filter((text) => text !== '')
    .map((text) => {
      const equals = text.indexOf('=');
      const split = equals < 0 ? text.length : equals;
      return { pid, name: text.slice(0, split), value: text.slice(split + 1) };
    });
}
