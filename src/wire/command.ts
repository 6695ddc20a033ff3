import { getS32, getU16, isZero, putU16, putU32 } from '../abi/bytes.ts';
import { KVM_ERRNO, type KvmErrno } from '../abi/errno.ts';
import { KvmiError } from '../error.ts';
import { allocate } from './allocate.ts';
import { type CommandDefinition, type Dialect, NotInDialectError } from './dialect.ts';
import { HEADER_SIZE, MAX_PAYLOAD, ProtocolError, putHeader } from './header.ts';
import { errorCode, vcpuHeader } from './layouts.ts';
import type { CommandName, Replies, Requests } from './names.ts';

const VCPU_HEADER_SIZE = vcpuHeader.size;
export const ERROR_SIZE = errorCode.size;

/** A command as the host side received it. */
export interface ReceivedCommand<N extends CommandName = CommandName> {
  readonly definition: CommandDefinition<N>;
  /** Index of the vCPU it is for; 0 for VM commands. */
  readonly vcpu: number;
  /** Padding in the vCPU header was not zero. */
  readonly headerPadding: boolean;
  /** Padding in the body was not zero. */
  readonly padding: boolean;
  /** Bytes of the payload that were really sent, before zero-extension. */
  readonly payloadSize: number;
  /** Undefined when the variable part is shorter than the fixed part announces. */
  readonly body: Requests[N] | undefined;
}

/** A payload of at least `size` bytes: messages may be shorter than their structure (kvmi.rst, "zero-extended"). */
function extended(payload: Uint8Array, size: number): Uint8Array {
  if (payload.length >= size) return payload;
  const whole = new Uint8Array(size);
  whole.set(payload);
  return whole;
}

/** Decodes the payload of a command. Nothing is copied but scalars: `data` of a body lies in `payload`. */
export function decodeCommand(definition: CommandDefinition, payload: Uint8Array): ReceivedCommand {
  const headed = definition.vcpuIn === 'header';
  const start = headed ? VCPU_HEADER_SIZE : 0;
  const bytes = extended(payload, start + definition.request.fixed.size);
  const body = definition.request.read(bytes, start, bytes.length - start);
  const vcpu = headed ? getU16(bytes, 0) : definition.vcpuIn === 'body' ? getU16(bytes, start) : 0;
  return {
    definition,
    vcpu,
    headerPadding: headed && !isZero(bytes, 2, 6),
    padding: definition.request.hasPadding(bytes, start),
    payloadSize: payload.length,
    body,
  } as ReceivedCommand;
}

/** A whole command message, header included. Throws NotInDialectError. */
export function encodeCommand<N extends CommandName>(
  dialect: Dialect,
  name: N,
  seq: number,
  body: Requests[N],
  vcpu = 0,
): Uint8Array {
  const definition = dialect.command(name);
  if (!definition) throw new NotInDialectError(name, dialect.name);
  const start = HEADER_SIZE + (definition.vcpuIn === 'header' ? VCPU_HEADER_SIZE : 0);
  const size = start - HEADER_SIZE + definition.request.sizeOf(body);
  if (size > MAX_PAYLOAD) {
    throw new KvmiError('E_MESSAGE_SIZE', `${name} takes ${size} bytes; a message holds ${MAX_PAYLOAD}`, {
      hint: 'Split the request into several commands.',
      data: { name, size },
    });
  }
  const message = allocate(HEADER_SIZE + size);
  putHeader(message, 0, definition.id, size, seq);
  if (definition.vcpuIn === 'header') putU16(message, HEADER_SIZE, vcpu);
  definition.request.write(message, start, definition.vcpuIn === 'body' ? { ...body, vcpu } : body);
  return message;
}

/** A reply that carries an error (`errno` 0: success without data), header included. */
export function encodeErrorReply(id: number, seq: number, errno: number): Uint8Array {
  const message = allocate(HEADER_SIZE + ERROR_SIZE);
  putHeader(message, 0, id, ERROR_SIZE, seq);
  putU32(message, HEADER_SIZE, -errno);
  return message;
}

/** A successful reply with its data, header included. */
export function encodeReply<N extends CommandName>(
  definition: CommandDefinition<N>,
  seq: number,
  data: Replies[N],
): Uint8Array {
  const size = ERROR_SIZE + definition.reply.sizeOf(data);
  const message = allocate(HEADER_SIZE + size);
  putHeader(message, 0, definition.id, size, seq);
  definition.reply.write(message, HEADER_SIZE + ERROR_SIZE, data);
  return message;
}

const errnoNames = new Map<number, KvmErrno>(
  Object.entries(KVM_ERRNO).map(([name, value]) => [value, name as KvmErrno]),
);

/** The host side answered a command with an error. */
export class ReplyError extends KvmiError {
  readonly command: CommandName;
  /** Positive number, as in KVM_ERRNO. */
  readonly errno: number;
  /** `KVM_EINVAL` and so on; undefined for a number that KVMI does not define. */
  readonly errnoName: KvmErrno | undefined;

  constructor(command: CommandName, errno: number) {
    const name = errnoNames.get(errno);
    super('E_REPLY', `${command} was answered with -${name ?? errno}`, { data: { command, errno } });
    this.name = 'ReplyError';
    this.command = command;
    this.errno = errno;
    this.errnoName = name;
  }
}

/**
 * Decodes the payload of a reply. Data shorter than its structure is zero-extended.
 *
 * @throws ReplyError when the host side answered with an error.
 * @throws ProtocolError when there is no room for the error code, or an announced array is cut.
 */
export function decodeReply<N extends CommandName>(
  definition: CommandDefinition<N>,
  payload: Uint8Array,
): Replies[N] {
  if (payload.length < ERROR_SIZE) {
    throw new ProtocolError(`reply to ${definition.name} has ${payload.length} bytes; at least 8 are needed`);
  }
  const err = getS32(payload, 0);
  if (err !== 0) throw new ReplyError(definition.name, -err);
  const bytes = extended(payload, ERROR_SIZE + definition.reply.fixed.size);
  const data = definition.reply.read(bytes, ERROR_SIZE, bytes.length - ERROR_SIZE);
  if (data === undefined) throw new ProtocolError(`reply to ${definition.name} is cut`);
  return data;
}
