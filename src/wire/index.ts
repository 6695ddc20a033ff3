import type { Dialect, DialectName } from './dialect.ts';
import { v7 } from './v7.ts';
import { v9 } from './v9.ts';
import { v12 } from './v12.ts';

export { allocate } from './allocate.ts';
export {
  decodeCommand,
  decodeReply,
  ERROR_SIZE,
  encodeCommand,
  encodeErrorReply,
  encodeReply,
  type ReceivedCommand,
  ReplyError,
} from './command.ts';
export {
  ACTION,
  type Action,
  type CommandDefinition,
  type Dialect,
  type DialectName,
  type EventDefinition,
  NotInDialectError,
} from './dialect.ts';
export {
  COMMON_SIZE,
  decodeEvent,
  decodeEventReply,
  decodeEventReplyData,
  EVENT_REPLY_SIZE,
  encodeEvent,
  encodeEventReply,
  eventSize,
  isEvent,
  MAX_EVENT_MESSAGE,
  type ReceivedEvent,
  type ReceivedEventReply,
  stateOffset,
} from './event.ts';
export { FrameDecoder, type FrameHandler } from './framing.ts';
export {
  CPU_TYPE,
  cookieHash,
  cookieMatches,
  encodeAnswer,
  encodeHello,
  HandshakeError,
  type HandshakeHello,
  HandshakeReader,
  handshakeAnswer,
  handshakeHello,
  handshakeMapEntry,
  type MemoryMapEntry,
} from './handshake.ts';
export { getHeader, HEADER_SIZE, MAX_PAYLOAD, ProtocolError, putHeader } from './header.ts';
export { changeGfnPlain, changeGfnWithView } from './layouts.ts';
export type {
  CommandName,
  EventData,
  EventName,
  EventReplyData,
  PageAccessEntry,
  RegistersReply,
  Replies,
  Requests,
  VcpuCommandName,
  VersionReply,
  VmCommandName,
} from './names.ts';

/** Every dialect, by name. */
export const DIALECTS: Readonly<Record<DialectName, Dialect>> = { v7, v9, v12 };
