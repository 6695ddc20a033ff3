import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { MISFORTUNES, type Misfortune } from './misfortunes.ts';

const USAGE = 'npm run soak -- [--rounds N] [--seed S] [--only KIND,…]';
const ROUNDS = 500;
const SEEDS = 2 ** 31;

export class SoakError extends Error {}

export interface SoakOptions {
  readonly rounds: number;
  readonly seed: number;
  readonly misfortunes: readonly Misfortune[];
}

/** @throws SoakError, with what there is to choose from. */
export function parseCommandLine(args: readonly string[]): SoakOptions {
  const { rounds, seed, only } = parsed(args);
  return {
    rounds: rounds === undefined ? ROUNDS : whole('--rounds', rounds),
    seed: seed === undefined ? randomInt(SEEDS) : whole('--seed', seed),
    misfortunes: only === undefined ? MISFORTUNES : only.split(',').flatMap(named),
  };
}

function parsed(args: readonly string[]) {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({ args: [...args], options: { rounds: text, seed: text, only: text } }).values;
  } catch (error) {
    throw new SoakError(`${error instanceof Error ? error.message : error}\nUsage: ${USAGE}`);
  }
}

/** `host` stands for all that happens to the host side, `host:KILL` for one of them. */
function named(name: string): Misfortune[] {
  const found = MISFORTUNES.filter((each) => each.name === name || each.name.startsWith(`${name}:`));
  if (found.length > 0) return found;
  throw new SoakError(`there is no "${name}". Kinds: ${MISFORTUNES.map((each) => each.name).join(', ')}`);
}

function whole(option: string, text: string): number {
  if (/^\d{1,9}$|^[12]\d{9}$/.test(text)) return Number(text);
  throw new SoakError(`${option} ${text}: not a number`);
}
