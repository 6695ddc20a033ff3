import { run } from './run.ts';

/** The command line `kvmi`: carries out `argv` (without node and script) and ends the process. */
export async function main(argv: readonly string[]): Promise<never> {
  process.exit(await run(argv));
}
