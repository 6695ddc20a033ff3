import { getS32, getU64 } from '../abi/bytes.ts';
import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, isPending, then } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { GPA_LIMIT, type Gpa, type MemoryRegion, PAGE_SIZE, type PhysicalMemory } from '../machine/index.ts';
import { type CommandDefinition, ERROR_SIZE, ProtocolError, ReplyError } from '../wire/index.ts';
import type { Requests } from './requests.ts';

/** Commands of one read or write that are under way at once: enough to hide the round trip, not to fill a socket. */
const WINDOW = 64;

/** A piece of a range that lies in one page. */
export interface Piece {
  /** Where it is in the range. */
  readonly at: number;
  readonly size: number;
}

/** The pieces of `size` bytes from `gpa` on, one a page. */
export function splitAtPages(gpa: number, size: number): Piece[] {
  const pieces: Piece[] = [];
  for (let at = 0; at < size; ) {
    const piece = Math.min(size - at, PAGE_SIZE - ((gpa + at) % PAGE_SIZE));
    pieces.push({ at, size: piece });
    at += piece;
  }
  return pieces;
}

/**
 * Does `step` for each item, WINDOW of them at a time, and stops at the first that gives false or throws.
 * Synchronous if the steps are. Nothing is under way any more when the result is there.
 */
export function windowed<T>(items: readonly T[], step: (item: T) => Awaitable<boolean>): Awaitable<boolean> {
  let next = 0;
  let good = true;
  const work = async (first: Awaitable<boolean>): Promise<void> => {
    for (let done = first; ; done = step(items[next++]!)) {
      try {
        if (!(await done)) good = false;
      } catch (error) {
        good = false;
        throw error;
      }
      if (!good || next >= items.length) return;
    }
  };
  const workers: Promise<void>[] = [];
  while (good && next < items.length && workers.length < WINDOW) {
    const done = attempt(
      () => step(items[next++]!),
      (error) => Promise.reject<boolean>(error),
    );
    if (isPending(done)) workers.push(work(done));
    else good = done;
  }
  if (workers.length === 0) return good;
  return Promise.allSettled(workers).then((results) => {
    for (const result of results) if (result.status === 'rejected') throw result.reason;
    return good;
  });
}

/** Guest-physical memory over the wire. Pages of one access are requested together. */
export class GuestMemory implements PhysicalMemory {
  /**
   * The wire has no list of regions. They are those of the handshake's memory map when it has one; otherwise they
   * were found by reading (see `findRegions`): memory from 0 on and from 4 GiB on, each taken to be in one piece.
   * Small holes below 1 MiB are not seen.
   */
  regions: readonly MemoryRegion[] = [];
  readonly #requests: Requests;

  constructor(requests: Requests) {
    this.#requests = requests;
  }

  /** Fills `into` from `gpa` on. False when any byte of it is not backed; `into` is then unspecified. */
  read(gpa: Gpa, into: Uint8Array): Awaitable<boolean> {
    if (!inRange(gpa, into.length)) return into.length === 0;
    if (into.length <= PAGE_SIZE - (gpa % PAGE_SIZE)) return into.length === 0 || this.#readPiece(gpa, into);
    return windowed(splitAtPages(gpa, into.length), ({ at, size }) =>
      this.#readPiece(gpa + at, into.subarray(at, at + size)),
    );
  }

  #readPiece(gpa: Gpa, into: Uint8Array): Awaitable<boolean> {
    return this.#requests.send('VM_READ_PHYSICAL', { gpa, size: into.length }, 0, (payload, definition) => {
      if (!backed(payload, definition)) return false;
      if (payload.length !== ERROR_SIZE + into.length) {
        throw new ProtocolError(
          `VM_READ_PHYSICAL of ${into.length} bytes was answered with ${payload.length - ERROR_SIZE}`,
        );
      }
      into.set(payload.subarray(ERROR_SIZE));
      return true;
    });
  }

  /**
   * Writes `from` at `gpa`. False, with nothing written, when any byte is not backed or read-only. A write to one page
   * is one command; one to several reads what was there first, to be able to take it back.
   */
  write(gpa: Gpa, from: Uint8Array): Awaitable<boolean> {
    if (!inRange(gpa, from.length)) return from.length === 0;
    if (from.length <= PAGE_SIZE - (gpa % PAGE_SIZE)) return from.length === 0 || this.#writePiece(gpa, from);
    const before = new Uint8Array(from.length);
    return then(this.read(gpa, before), (readable) => readable && this.#writePages(gpa, from, before));
  }

  #writePages(gpa: Gpa, from: Uint8Array, before: Uint8Array): Awaitable<boolean> {
    const written: Piece[] = [];
    const write = (piece: Piece): Awaitable<boolean> =>
      then(this.#writePiece(gpa + piece.at, from.subarray(piece.at, piece.at + piece.size)), (done) => {
        if (done) written.push(piece);
        return done;
      });
    return then(windowed(splitAtPages(gpa, from.length), write), (done) => {
      if (done) return true;
      const restore = ({ at, size }: Piece) => this.#writePiece(gpa + at, before.subarray(at, at + size));
      return then(windowed(written, restore), () => false);
    });
  }

  #writePiece(gpa: Gpa, from: Uint8Array): Awaitable<boolean> {
    return this.#requests.send('VM_WRITE_PHYSICAL', { gpa, size: from.length, data: from }, 0, backed);
  }

  /** A copy of `size` bytes. Throws a KvmiError with code E_NOT_BACKED where there is no memory. */
  async readBytes(gpa: Gpa, size: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size);
    if (!(await this.read(gpa, bytes))) throw notBacked(gpa, size);
    return bytes;
  }

  /** The eight bytes at `gpa`. Throws as {@link readBytes}. */
  async u64(gpa: Gpa): Promise<bigint> {
    return getU64(await this.readBytes(gpa, 8), 0);
  }
}

function inRange(gpa: Gpa, size: number): boolean {
  return gpa >= 0 && gpa + size <= GPA_LIMIT;
}

function backed(payload: Uint8Array, definition: CommandDefinition): boolean {
  if (payload.length < ERROR_SIZE) {
    throw new ProtocolError(`the reply to ${definition.name} has only ${payload.length} bytes`);
  }
  const error = getS32(payload, 0);
  if (error === 0) return true;
  if (error === -KVM_ERRNO.KVM_ENOENT) return false;
  throw new ReplyError(definition.name, -error);
}

export function notBacked(address: number | bigint, size: number): KvmiError {
  return new KvmiError('E_NOT_BACKED', `${size} bytes at 0x${address.toString(16)}: no memory there`, {
    hint: 'The address lies in a hole, in a device, or is not mapped.',
    data: { address, size },
  });
}
