import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, forEachThen, then } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { ErrorCode } from '../error-codes.ts';
import { CapabilityError } from '../machine/index.ts';
import {
  allocate,
  type CommandName,
  ERROR_SIZE,
  HEADER_SIZE,
  ProtocolError,
  type Replies,
} from '../wire/index.ts';
import type { HookLog } from './log.ts';
import type { Refusal } from './rules.ts';

/**
 * How a command ended: 0, a positive KVM errno, the data of the reply, or a whole message from
 * {@link bytesReply} whose header is still missing.
 */
export type Outcome<N extends CommandName = CommandName> = number | Replies[N] | Uint8Array;

/** Room for a reply that is nothing but `size` bytes, so that they can be read straight into it. */
export function bytesReply(size: number): Uint8Array {
  return allocate(HEADER_SIZE + ERROR_SIZE + size);
}

/** The bytes of a {@link bytesReply} that are data. */
export function bytesOf(message: Uint8Array): Uint8Array {
  return message.subarray(HEADER_SIZE + ERROR_SIZE);
}

/** Answers with an error number, or ends the connection. */
export function refuse(refusal: Refusal, what: string): number {
  if (refusal === 'close') throw new ProtocolError(what);
  return refusal;
}

const ERRNO_OF_CODE: Readonly<Partial<Record<ErrorCode, number>>> = {
  E_BUSY: KVM_ERRNO.KVM_EBUSY,
  E_PERMISSION: KVM_ERRNO.KVM_EPERM,
  E_AGAIN: KVM_ERRNO.KVM_EAGAIN,
  E_NO_MEMORY: KVM_ERRNO.KVM_ENOMEM,
};

/**
 * The error number for what a driver threw: -KVM_EOPNOTSUPP for an absent capability (its reason is
 * logged once), what its code stands for, and -KVM_EFAULT for a failure that KVMI has no number for.
 */
export function errnoOf(error: unknown, log: HookLog, what: string): number {
  if (error instanceof ProtocolError) throw error;
  if (error instanceof CapabilityError) {
    log.warnOnce(error.message);
    return KVM_ERRNO.KVM_EOPNOTSUPP;
  }
  const known = error instanceof KvmiError ? ERRNO_OF_CODE[error.code] : undefined;
  if (known !== undefined) return known;
  log.errorOnce(`${what} failed: ${messageOf(error)}`);
  return KVM_ERRNO.KVM_EFAULT;
}

/**
 * Applies `one` to every entry of a command, whatever becomes of the others.
 *
 * @returns the first error number, or 0.
 */
export function applyAll<T>(
  entries: readonly T[],
  log: HookLog,
  what: string,
  one: (entry: T) => Awaitable<number>,
): Awaitable<number> {
  let first = 0;
  const done = forEachThen(entries, (entry) => {
    const outcome = attempt(
      () => one(entry),
      (error) => errnoOf(error, log, what),
    );
    return then(outcome, (errno) => {
      if (first === 0) first = errno;
    });
  });
  return then(done, () => first);
}
