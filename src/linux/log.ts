import { textOf } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import type { Obj, Session } from './session.ts';

/** A record of the kernel log, as dmesg(1) prints it. */
export interface LogRecord {
  readonly sequence: number;
  /** Nanoseconds since boot. */
  readonly timeNs: bigint;
  /** 0 emergency … 7 debug. */
  readonly level: number;
  readonly facility: number;
  readonly text: string;
}

export function* kernelLog(session: Session): Walk<LogRecord[]> {
  return session.kernel.symbols.address('prb') === undefined
    ? yield* linearLog(session)
    : yield* ringBufferLog(session);
}

/** Descriptor numbers are 62 bits; the two above them are the state. */
const ID_MASK = (1n << 62n) - 1n;
const STATE_SHIFT = 62n;
const COMMITTED = 1n;
const FINALIZED = 2n;
const MAX_BITS = 24;
const MAX_TEXT = 8192;

/** Since 5.10: kernel/printk/printk_ringbuffer.c. */
function* ringBufferLog(session: Session): Walk<LogRecord[]> {
  const { layouts } = session.kernel;
  const ring = yield* session.object('ringBuffer', yield* session.space.u64(session.symbol('prb')));
  const countBits = ring.number('countBits');
  const sizeBits = ring.number('sizeBits');
  if (countBits > MAX_BITS || sizeBits > MAX_BITS + 8) {
    session.note('the ring buffer of the kernel log has an impossible size');
    return [];
  }
  const sizes = {
    descriptor: layouts.get('logDescriptor').size,
    info: layouts.get('logInfo').size,
    text: 2 ** sizeBits,
  };
  const count = 2 ** countBits;
  const records: LogRecord[] = [];
  const head = ring.big('head') & ID_MASK;
  let id = ring.big('tail') & ID_MASK;
  for (let i = 0; i <= count && session.hasTime(); i++, id = (id + 1n) & ID_MASK) {
    const record = yield* session.attempt(
      'the kernel log',
      readRecord(session, ring, id, count, sizes),
      undefined,
    );
    if (record !== undefined) records.push(record);
    if (id === head) break;
  }
  return records;
}

function* readRecord(
  session: Session,
  ring: Obj<'ringBuffer'>,
  id: bigint,
  count: number,
  sizes: { readonly descriptor: number; readonly info: number; readonly text: number },
): Walk<LogRecord | undefined> {
  const index = Number(id % BigInt(count));
  const at = (start: bigint, size: number) => start + BigInt(index * size);
  const descriptor = yield* session.object(
    'logDescriptor',
    at(ring.pointer('descriptors'), sizes.descriptor),
  );
  const state = BigInt.asUintN(64, descriptor.big('state'));
  const stage = state >> STATE_SHIFT;
  if ((state & ID_MASK) !== id || (stage !== COMMITTED && stage !== FINALIZED)) return undefined;
  const info = yield* session.object('logInfo', at(ring.pointer('infos'), sizes.info));
  return {
    sequence: info.number('sequence'),
    timeNs: info.big('time'),
    level: info.number('level'),
    facility: info.number('facility'),
    text: yield* blockText(session, ring, descriptor, sizes.text, info.number('length')),
  };
}

/** The text of a record lies behind its descriptor number; one that would cross the end starts anew at the beginning. */
function* blockText(
  session: Session,
  ring: Obj<'ringBuffer'>,
  descriptor: Obj<'logDescriptor'>,
  size: number,
  length: number,
): Walk<string> {
  const begin = BigInt.asUintN(64, descriptor.big('begin'));
  const next = BigInt.asUintN(64, descriptor.big('next'));
  // Positions that are odd stand for records without text.
  if ((begin & 1n) === 1n || length === 0) return '';
  const ringSize = BigInt(size);
  const wraps = begin / ringSize !== next / ringSize && next % ringSize !== 0n;
  const start = (wraps ? 0n : begin % ringSize) + 8n;
  return textOf(yield* session.space.read(ring.pointer('text') + start, Math.min(length, MAX_TEXT)));
}

/** Until 5.9: records of variable length one after the other, from log_first_idx on. */
function* linearLog(session: Session): Walk<LogRecord[]> {
  const { space, kernel } = session;
  const buffer = yield* space.u64(session.symbol('log_buf'));
  const size = yield* space.u32(session.symbol('log_buf_len'));
  const end = yield* space.u32(session.symbol('log_next_idx'));
  const header = BigInt(kernel.layouts.get('logRecord').size);
  const records: LogRecord[] = [];
  let at = yield* space.u32(session.symbol('log_first_idx'));
  for (let read = 0; at !== end && read < size && session.hasTime(); ) {
    const record = yield* session.attempt(
      'the kernel log',
      session.object('logRecord', buffer + BigInt(at)),
      undefined,
    );
    if (record === undefined) break;
    const length = record.number('length');
    if (length === 0) {
      // The rest of the buffer was too short: it goes on at the start.
      read += size - at;
      at = 0;
      continue;
    }
    const textLength = Math.min(record.number('textLength'), MAX_TEXT);
    const text = yield* session.attempt(
      'the kernel log',
      space.read(record.gva + header, textLength),
      new Uint8Array(),
    );
    records.push({
      sequence: records.length,
      timeNs: record.big('time'),
      level: record.number('level'),
      facility: record.number('facility'),
      text: textOf(text),
    });
    at += length;
    read += length;
  }
  return records;
}
