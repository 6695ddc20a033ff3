/** Codes of ECMA-48 that turn a style on and off. */
const STYLES = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  magenta: [35, 39],
  cyan: [36, 39],
} as const;

/** Functions that colour text, or leave it as it is. */
export type Theme = Readonly<Record<keyof typeof STYLES, (text: string) => string>>;

export const COLOR_CHOICES = ['auto', 'always', 'never'] as const;
export type ColorChoice = (typeof COLOR_CHOICES)[number];

function theme(colored: boolean): Theme {
  const functions = Object.entries(STYLES).map(([name, [on, off]]) => [
    name,
    (text: string) => (colored ? `\x1b[${on}m${text}\x1b[${off}m` : text),
  ]);
  return Object.fromEntries(functions) as Theme;
}

/** Colours for a stream: with `auto` only on a terminal that has them, and never against NO_COLOR. */
export function themeFor(
  stream: { readonly isTTY?: boolean },
  choice: ColorChoice,
  env: Readonly<Record<string, string | undefined>>,
): Theme {
  const auto = stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
  return theme(choice === 'always' || (choice === 'auto' && auto));
}

/** No colours. */
export const PLAIN: Theme = theme(false);
