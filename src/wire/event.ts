import { getU16, getU32, isZero, putU16 } from '../abi/bytes.ts';
import { vcpuState } from '../abi/x86.ts';
import { allocate } from './allocate.ts';
import { ACTION, type Action, type Dialect, type EventDefinition, NotInDialectError } from './dialect.ts';
import { HEADER_SIZE, ProtocolError, putHeader } from './header.ts';
import { vcpuHeader } from './layouts.ts';
import type { EventData, EventName, EventReplyData } from './names.ts';

const STATE_SIZE = vcpuState.size;
/** The common block of a vCPU event: size, vcpu and event (or padding), then the state block. */
export const COMMON_SIZE = 8 + STATE_SIZE;
/** vCPU header and action: what every event reply has. */
export const EVENT_REPLY_SIZE = vcpuHeader.size + 8;

/** The largest event of any dialect, header included. */
export const MAX_EVENT_MESSAGE = HEADER_SIZE + 8 + COMMON_SIZE + 32;

/** Whether an event is sent as a bare header (dialect v12, VM events). */
function isBare(dialect: Dialect, definition: EventDefinition): boolean {
  return dialect.messages.vmEvent !== dialect.messages.event && definition.controlledBy === 'vm';
}

/** Payload bytes of an event. */
export function eventSize(dialect: Dialect, definition: EventDefinition): number {
  if (isBare(dialect, definition)) return dialect.eventHeaderSize;
  return dialect.eventHeaderSize + COMMON_SIZE + definition.data.size;
}

/** Where the state block (536 bytes) of a vCPU event starts in the message, header included. */
export function stateOffset(dialect: Dialect): number {
  return HEADER_SIZE + dialect.eventHeaderSize + 8;
}

/**
 * Writes an event message into `into` (at least MAX_EVENT_MESSAGE bytes). The state block is left as it
 * is, so that the vCPU can fill it in place at `stateOffset`; VM events of v7 and v9 get zeros.
 *
 * @returns the length of the message, header included.
 */
export function encodeEvent<N extends EventName>(
  dialect: Dialect,
  definition: EventDefinition & { readonly name: N },
  into: Uint8Array,
  seq: number,
  vcpu: number,
  data: EventData[N],
): number {
  const size = eventSize(dialect, definition);
  const bare = isBare(dialect, definition);
  putHeader(into, 0, bare ? dialect.messages.vmEvent : dialect.messages.event, size, seq);
  let at = HEADER_SIZE;
  if (dialect.eventHeaderSize > 0) {
    into.fill(0, at, at + dialect.eventHeaderSize);
    putU16(into, at, definition.id);
    at += dialect.eventHeaderSize;
    if (bare) return at;
  }
  into.fill(0, at, at + 8);
  putU16(into, at, COMMON_SIZE);
  putU16(into, at + 2, vcpu);
  if (dialect.eventHeaderSize === 0) into[at + 4] = definition.id;
  definition.data.write(into, at + COMMON_SIZE, data);
  return HEADER_SIZE + size;
}

/** An event as the tool received it. */
export interface ReceivedEvent<N extends EventName = EventName> {
  readonly name: N;
  readonly definition: EventDefinition;
  readonly seq: number;
  readonly vcpu: number;
  /** The 536-byte state block (layout `vcpuState` in abi/), not copied. Empty for bare VM events. */
  readonly state: Uint8Array;
  readonly data: EventData[N];
}

/** Whether a message is an event. A short one with an event's id is an error block that answers a bad event reply. */
export function isEvent(dialect: Dialect, id: number, payload: Uint8Array): boolean {
  const { vmEvent, event } = dialect.messages;
  if (id !== event && id !== vmEvent) return false;
  return vmEvent === event || id === event ? payload.length >= COMMON_SIZE : payload.length >= 8;
}

/**
 * Decodes an event. Shorter specific data is zero-extended and longer is ignored; the common block tells
 * its own size.
 *
 * @throws ProtocolError when the common block does not fit or the event is not known.
 */
export function decodeEvent(dialect: Dialect, id: number, seq: number, payload: Uint8Array): ReceivedEvent {
  const bare = dialect.messages.vmEvent !== dialect.messages.event && id === dialect.messages.vmEvent;
  const common = dialect.eventHeaderSize;
  if (!bare && payload.length < common + COMMON_SIZE) {
    throw new ProtocolError(`event of ${payload.length} bytes is too short`, { id, seq });
  }
  const eventId = common > 0 ? getU16(payload, 0) : payload[4]!;
  const definition = dialect.eventById(eventId);
  if (!definition) throw new ProtocolError(`event ${eventId} is not known in ${dialect.name}`, { id, seq });
  if (bare) {
    const data = definition.data.read(payload, payload.length) as EventData[EventName];
    return { name: definition.name, definition, seq, vcpu: 0, state: payload.subarray(0, 0), data };
  }
  const blockSize = getU16(payload, common);
  const dataAt = common + blockSize;
  if (blockSize < COMMON_SIZE || dataAt > payload.length) {
    throw new ProtocolError(`event ${definition.name} announces a common block of ${blockSize} bytes`, {
      seq,
    });
  }
  return {
    name: definition.name,
    definition,
    seq,
    vcpu: getU16(payload, common + 2),
    state: payload.subarray(common + 8, common + COMMON_SIZE),
    data: readExtended(definition, payload, dataAt) as EventData[EventName],
  };
}

function readExtended(definition: EventDefinition, payload: Uint8Array, at: number): unknown {
  const { data } = definition;
  if (payload.length - at >= data.size) return data.read(payload, at);
  const whole = new Uint8Array(data.size);
  whole.set(payload.subarray(at));
  return data.read(whole, 0);
}

const NO_DATA: EventReplyData = {};

/** A whole event reply message, header included. Missing reply data is sent as zeros. */
export function encodeEventReply(
  dialect: Dialect,
  event: Pick<ReceivedEvent, 'definition' | 'seq' | 'vcpu'>,
  action: Action,
  data: EventReplyData = NO_DATA,
): Uint8Array {
  const { definition } = event;
  if (!definition.actions.includes(action)) {
    throw new NotInDialectError(`action ${action} for event ${definition.name}`, dialect.name);
  }
  const size = EVENT_REPLY_SIZE + definition.reply.size;
  const message = allocate(HEADER_SIZE + size);
  putHeader(message, 0, dialect.messages.eventReply, size, event.seq);
  putU16(message, HEADER_SIZE, event.vcpu);
  message[HEADER_SIZE + 8] = ACTION[action];
  message[HEADER_SIZE + 9] = definition.id;
  if (definition.reply.size > 0) {
    definition.reply.write(message, HEADER_SIZE + EVENT_REPLY_SIZE, { ...EMPTY_REPLY, ...data });
  }
  return message;
}

const EMPTY_REPLY: Required<EventReplyData> = {
  new_val: 0n,
  ctx_addr: 0n,
  ctx_size: 0,
  singlestep: 0,
  rep_complete: 0,
  ctx_data: new Uint8Array(0),
};

/** The part of an event reply that does not depend on the event. */
export interface ReceivedEventReply {
  readonly vcpu: number;
  readonly headerPadding: boolean;
  /** The action byte; not checked yet. */
  readonly action: number;
  /** Padding after the action was not zero. */
  readonly padding: boolean;
}

/** Decodes the fixed part of an event reply; undefined when it is shorter than that. */
export function decodeEventReply(payload: Uint8Array): ReceivedEventReply | undefined {
  if (payload.length < EVENT_REPLY_SIZE) return undefined;
  return {
    vcpu: getU16(payload, 0),
    headerPadding: !isZero(payload, 2, 6),
    action: payload[8]!,
    padding: getU16(payload, 10) !== 0 || getU32(payload, 12) !== 0,
  };
}

/**
 * Decodes the data of the reply to `definition`, zero-extended. Undefined when there is more than the
 * event takes, which closes the connection (kvmi.rst, "Event reply").
 */
export function decodeEventReplyData(
  definition: EventDefinition,
  payload: Uint8Array,
): { data: EventReplyData; padding: boolean } | undefined {
  const { reply } = definition;
  const length = payload.length - EVENT_REPLY_SIZE;
  if (length > reply.size) return undefined;
  if (reply.size === 0) return { data: NO_DATA, padding: false };
  let bytes = payload;
  if (length < reply.size) {
    bytes = new Uint8Array(EVENT_REPLY_SIZE + reply.size);
    bytes.set(payload);
  }
  return {
    data: reply.read(bytes, EVENT_REPLY_SIZE) as EventReplyData,
    padding: reply.hasPadding(bytes, EVENT_REPLY_SIZE),
  };
}
