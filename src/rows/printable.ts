import { eastAsianWidth } from 'get-east-asian-width';

/**
 * What must not reach a terminal as it is: control characters (escape sequences start with one), characters that
 * reorder or hide text, line separators, and halves of surrogate pairs.
 */
const UNSAFE = new RegExp(
  [
    '\\p{Cc}|\\p{Cf}|\\p{Co}|\\p{Cs}|\\u2028|\\u2029',
    // Shown as nothing, though they are no format characters.
    '\\u034f|\\u115f|\\u1160|\\u17b4|\\u17b5|[\\u180b-\\u180f]|\\u2800|\\u3164|\\uffa0|[\\ufe00-\\ufe0f]|[\\u{e0100}-\\u{e01ef}]',
  ].join('|'),
  'gu',
);

function escaped(character: string): string {
  const code = character.codePointAt(0)!;
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, '0')}`;
  if (code < 0x10000) return `\\u${code.toString(16).padStart(4, '0')}`;
  return `\\u{${code.toString(16)}}`;
}

/**
 * Text from a guest, a VMM or a file, made safe for a terminal: whatever could move the cursor, change a colour,
 * reorder or hide text is written as an escape (`\x1b`, `\u202e`).
 */
export function printable(text: string): string {
  return text.replace(UNSAFE, escaped);
}

/** The same for text of this program and of libraries that may quote foreign text: line ends stay. */
export function printableLines(text: string): string {
  return text.split('\n').map(printable).join('\n');
}

/** JSON whose strings hold no unsafe character, as JSON escapes. The value that it stands for is the same. */
export function safeJson(value: unknown): string {
  return JSON.stringify(value).replace(UNSAFE, (character) =>
    Array.from({ length: character.length }, (_, i) => {
      const unit = character.charCodeAt(i);
      return `\\u${unit.toString(16).padStart(4, '0')}`;
    }).join(''),
  );
}

const COMBINING = /^\p{M}$/u;
const ASCII = /^[\x20-\x7e]*$/;

/** Columns that printable text takes on a terminal. */
export function displayWidth(text: string): number {
  if (ASCII.test(text)) return text.length;
  let width = 0;
  for (const character of text) {
    if (COMBINING.test(character)) continue;
    width += eastAsianWidth(character.codePointAt(0)!);
  }
  return width;
}

/** Printable text cut to `width` columns, with an ellipsis when something was cut. */
export function fitted(text: string, width: number): string {
  if (displayWidth(text) <= width) return text;
  let used = 1;
  let kept = '';
  for (const character of text) {
    used += displayWidth(character);
    if (used > width) break;
    kept += character;
  }
  return `${kept}…`;
}
