import { styleText } from 'node:util';

const COLOURS = process.stdout.isTTY && !process.env.NO_COLOR;

function style(format: 'bold' | 'dim' | 'cyan' | 'green', text: string): string {
  return COLOURS ? styleText(format, text) : text;
}

/** Prints a story: numbered steps, the SDK line of each, and what came of it. */
export class Narrator {
  readonly #start = performance.now();
  #step = 0;

  title(text: string): void {
    console.log(`\n${style('bold', text)}`);
  }

  /** A step: what it is about and the line of code that does it. */
  step(about: string, code?: string): void {
    this.#step++;
    console.log(`\n${style('cyan', `${this.#step}.`)} ${style('bold', about)}`);
    if (code) for (const line of code.split('\n')) console.log(style('dim', `   > ${line}`));
  }

  /** Something that was seen. */
  see(what: string, value: string | number | bigint): void {
    console.log(`   ${what.padEnd(24)} ${style('green', String(value))}`);
  }

  note(text: string): void {
    console.log(style('dim', `   ${text}`));
  }

  /** A claim that was checked; a false one ends the story. */
  proof(what: string, holds: boolean): void {
    if (!holds) throw new Error(`not so: ${what}`);
    console.log(`   ${style('green', '✔')} ${what}`);
  }

  end(): void {
    const seconds = ((performance.now() - this.#start) / 1000).toFixed(1);
    console.log(`\n${style('bold', 'The end.')} ${style('dim', `${seconds} s`)}\n`);
  }
}

export function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`;
}
