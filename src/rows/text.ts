import { displayWidth } from './printable.ts';

/** `text` with spaces after it, so that it takes `width` columns of a terminal. */
export function padded(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - displayWidth(text)));
}

/** How wide text for people is where no terminal says. */
export const STANDARD_WIDTH = 80;
/** Text next to something else keeps this much room on the narrowest terminal. */
const LEAST_WIDTH = 20;

/** Words in lines of at most `width` characters; a longer word has a line of its own. */
export function wrapped(text: string, width: number): string[] {
  const room = Math.max(LEAST_WIDTH, width);
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/).filter((each) => each !== '')) {
    if (line !== '' && displayWidth(line) + 1 + displayWidth(word) > room) {
      lines.push(line);
      line = '';
    }
    line += line === '' ? word : ` ${word}`;
  }
  if (line !== '') lines.push(line);
  return lines;
}

const INDENT = '  ';

/**
 * What goes to a terminal behind a prefix of `used` characters: lines of at most `width`, all but the first indented.
 * As it is when there is no width.
 */
export function behind(used: number, text: string, width: number | undefined): string {
  if (width === undefined) return text;
  const fits = text.split('\n').every((line, i) => displayWidth(line) + (i === 0 ? used : 0) <= width);
  if (fits) return text;
  const [first = '', ...others] = text.split('\n');
  const [begin = '', ...rest] = wrapped(first, width - used);
  const more = [rest.join(' '), ...others].flatMap((line) => wrapped(line, width - INDENT.length));
  return [begin, ...more.map((line) => INDENT + line)].join('\n');
}
