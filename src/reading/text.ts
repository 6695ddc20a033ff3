/** Bytes of a guest up to the first zero byte, as text: UTF-8, with U+FFFD for what is none. */
export function textOf(bytes: Uint8Array): string {
  const zero = bytes.indexOf(0);
  const length = zero < 0 ? bytes.length : zero;
  let isAscii = true;
  for (let i = 0; i < length && isAscii; i++) isAscii = bytes[i]! < 0x80;
  return Buffer.from(bytes.buffer, bytes.byteOffset, length).toString(isAscii ? 'latin1' : 'utf8');
}

/** C0 and C1 controls, delete, and what changes the direction of text. */
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/**
 * Text of a guest as it may go to a terminal: controls, escape sequences and marks that change the direction of text
 * become `\xNN` or `\uNNNN`, and a backslash is doubled so that the result is unambiguous.
 */
export function printable(text: string): string {
  return text.replaceAll('\\', '\\\\').replace(UNPRINTABLE, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100
      ? `\\x${code.toString(16).padStart(2, '0')}`
      : `\\u${code.toString(16).padStart(4, '0')}`;
  });
}

/** An address as it is printed and as it stands in rows for programs: `0x` and 16 digits. */
export function hex(address: bigint): string {
  return `0x${BigInt.asUintN(64, address).toString(16).padStart(16, '0')}`;
}
