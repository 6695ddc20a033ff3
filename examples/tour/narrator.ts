import pc from 'picocolors';

/** Prints a story: numbered steps, the SDK line of each, and what came of it. */
export class Narrator {
  readonly #start = performance.now();
  #step = 0;

  title(text: string): void {
    console.log(`\n${pc.bold(text)}`);
  }

  /** A step: what it is about and the line of code that does it. */
  step(about: string, code?: string): void {
    this.#step++;
    console.log(`\n${pc.cyan(`${this.#step}.`)} ${pc.bold(about)}`);
    if (code) for (const line of code.split('\n')) console.log(pc.dim(`   > ${line}`));
  }

  /** Something that was seen. */
  see(what: string, value: string | number | bigint): void {
    console.log(`   ${what.padEnd(24)} ${pc.green(String(value))}`);
  }

  note(text: string): void {
    console.log(pc.dim(`   ${text}`));
  }

  /** A claim that was checked; a false one ends the story. */
  proof(what: string, holds: boolean): void {
    if (!holds) throw new Error(`not so: ${what}`);
    console.log(`   ${pc.green('✔')} ${what}`);
  }

  end(): void {
    const seconds = ((performance.now() - this.#start) / 1000).toFixed(1);
    console.log(`\n${pc.bold('The end.')} ${pc.dim(`${seconds} s`)}\n`);
  }
}

export function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`;
}
