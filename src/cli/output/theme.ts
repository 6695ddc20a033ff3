import colors from 'picocolors';

/** Functions that colour text, or leave it as it is. */
export type Theme = Pick<
  ReturnType<typeof colors.createColors>,
  'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan' | 'magenta'
>;

export const COLOR_CHOICES = ['auto', 'always', 'never'] as const;
export type ColorChoice = (typeof COLOR_CHOICES)[number];

/** Colours for a stream: with `auto` only on a terminal that has them, and never against NO_COLOR. */
export function themeFor(
  stream: { readonly isTTY?: boolean },
  choice: ColorChoice,
  env: Readonly<Record<string, string | undefined>>,
): Theme {
  const auto = stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
  return colors.createColors(choice === 'always' || (choice === 'auto' && auto));
}

/** No colours. */
export const PLAIN: Theme = colors.createColors(false);
