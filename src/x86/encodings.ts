/*
 * What follows an opcode in 64-bit code (Intel SDM vol. 2, appendix A; AMD APM vol. 3, appendix A), a letter an opcode:
 *
 * | . | nothing        | M | ModRM          | b | 1 byte         | z | 4 bytes, 2 with 66          |
 * | m | ModRM, 1 byte  | Z | ModRM, as z    | w | 2 bytes        | j | a distance of 4 bytes       |
 * | J | a distance of 1 byte               | e | 2 bytes and 1  | v | 8 bytes with REX.W, else as z |
 * | o | an offset of 8 bytes, 4 with 67    | g | ModRM, 1 byte for /0 and /1   | G | ModRM, as z for /0 and /1 |
 * | x | SSE4a: ModRM, 2 bytes with 66 or F2 | R | ModRM, always a register: control and debug registers |
 * | - | no instruction, or a prefix |
 */

const ONE_BYTE = [
  'MMMMbz--MMMMbz--', // 00
  'MMMMbz--MMMMbz--',
  'MMMMbz--MMMMbz--',
  'MMMMbz--MMMMbz--',
  '----------------', // 40: REX
  '................',
  '---M----zZbm....', // 60
  'JJJJJJJJJJJJJJJJ',
  'mZ-mMMMMMMMMMMMM', // 80
  '..........-.....',
  'oooo....bz......', // a0
  'bbbbbbbbvvvvvvvv',
  'mmw.--mZe.w..b-.', // c0
  'MMMM---.MMMMMMMM',
  'JJJJbbbbjj-J....', // e0
  '-.--..gG......MM',
].join('');

const TWO_BYTE = [
  'MMMM-.....-.-M.m', // 00
  'MMMMMMMMMMMMMMMM',
  'RRRR----MMMMMMMM',
  '......-.--------',
  'MMMMMMMMMMMMMMMM', // 40
  'MMMMMMMMMMMMMMMM',
  'MMMMMMMMMMMMMMMM', // 60
  'mmmmMMM.xMMMMMMM',
  'jjjjjjjjjjjjjjjj', // 80
  'MMMMMMMMMMMMMMMM',
  '...MmM--...MmMMM', // a0
  'MMMMMMMMMMmMMMMM',
  'MMmMmmmM........', // c0
  'MMMMMMMMMMMMMMMM',
  'MMMMMMMMMMMMMMMM', // e0
  'MMMMMMMMMMMMMMMM',
].join('');

/** Opcode maps by their numbers in VEX, EVEX and XOP prefixes; 0 has the opcodes of one byte. */
const MAPS: ReadonlyMap<number, string> = new Map([
  [0, ONE_BYTE],
  [1, TWO_BYTE],
  [2, 'M'.repeat(256)],
  [3, 'm'.repeat(256)],
  // AVX512-FP16.
  [5, 'M'.repeat(256)],
  [6, 'M'.repeat(256)],
  // XOP.
  [8, 'm'.repeat(256)],
  [9, 'M'.repeat(256)],
  [10, 'Z'.repeat(256)],
]);

/** What follows an opcode, as one of the letters above. */
export function followingOf(map: number, opcode: number): string {
  return MAPS.get(map)?.[opcode] ?? '-';
}

/** A prefix of 64-bit code other than REX: operand and address size, LOCK, REP, segments. */
export function isLegacyPrefix(byte: number): boolean {
  return LEGACY_PREFIXES.has(byte);
}

const LEGACY_PREFIXES = new Set([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3]);

export function isRex(byte: number): boolean {
  return byte >= 0x40 && byte <= 0x4f;
}
