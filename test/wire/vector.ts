import type {
  Action,
  CommandName,
  EventData,
  EventName,
  EventReplyData,
  Replies,
  Requests,
} from '../../src/wire/index.ts';

/*
 * Messages as bytes, written from the text of the specification. In `hex`, spaces and | only help to read.
 * Values are chosen so that every byte of a field can be told from every other one.
 */

/** A command and its successful reply. */
export interface CommandVector<N extends CommandName = CommandName> {
  readonly name: N;
  /** Goes into the vCPU header, or the body of a pause. */
  readonly vcpu?: number;
  readonly body: Requests[N];
  readonly request: string;
  readonly data: Replies[N];
  readonly reply: string;
}

/** An event and an answer to it. */
export interface EventVector<N extends EventName = EventName> {
  readonly name: N;
  readonly vcpu: number;
  readonly data: EventData[N];
  readonly event: string;
  /** Undefined when the event has no answer. */
  readonly answer?: { readonly action: Action; readonly data?: EventReplyData; readonly hex: string };
}

export function command<N extends CommandName>(vector: CommandVector<N>): CommandVector {
  return vector as unknown as CommandVector;
}

export function event<N extends EventName>(vector: EventVector<N>): EventVector {
  return vector as unknown as EventVector;
}

export function parseHex(hex: string): Uint8Array {
  const digits = hex.replace(/[\s|]/g, '');
  if (digits.length % 2 !== 0 || /[^0-9a-fA-F]/.test(digits)) throw new Error(`not hex: ${hex.slice(0, 80)}`);
  return Uint8Array.from(Buffer.from(digits, 'hex'));
}

/** `count` times the same byte. */
export function times(count: number, byte: string): string {
  return byte.repeat(count);
}

/** `count` bytes that count up from `first`. */
export function ramp(count: number, first: number): string {
  return Array.from({ length: count }, (_, i) => ((first + i) & 0xff).toString(16).padStart(2, '0')).join('');
}

/** The sequence number of every vector. */
export const SEQ = 0x44332211;
export const S = '11 22 33 44';
/** The vCPU of most: its header. */
export const VCPU = 0x0102;
export const V = '02 01 00 00 00 00 00 00';
/** No error. */
export const OK = '00 00 00 00 00 00 00 00';
export const Z7 = '00 00 00 00 00 00 00';

export const GPA = 0x0008_7060_5040_3020;
export const gpa = '20 30 40 50 60 70 08 00';
export const GFN = 0x0605_0403_0201;
export const gfn = '01 02 03 04 05 06 00 00';
export const ALL_ONES = 2 ** 64;
export const allOnes = 'ff ff ff ff ff ff ff ff';
export const WORD = 0x8877_6655_4433_2211n;
export const word = '11 22 33 44 55 66 77 88';
export const OTHER = 0xfedc_ba98_7654_3210n;
export const other = '10 32 54 76 98 ba dc fe';

/** kvm_regs, kvm_sregs and an XSAVE area. */
export const regs = ramp(144, 0x10);
export const sregs = ramp(312, 0x40);
export const area = ramp(4096, 3);
/** An event's x86 block: mode 8, then anything. */
export const state = `08 ${Z7} ${ramp(528, 0x21)}`;
