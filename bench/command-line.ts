import { parseArgs } from 'node:util';
import { BenchError } from './bench-error.ts';

const USAGE = 'npm run bench -- [--json FILE | -o json] [--against REV] [SUITE…]';

export interface BenchOptions {
  /** The suites to run, in their order. */
  readonly suites: readonly string[];
  /** Where the results go as JSON; `-` is standard output, which then has nothing else. */
  readonly json?: string;
  /** A revision to compare with. */
  readonly against?: string;
}

/** @throws BenchError, with what there is to choose from. */
export function parseCommandLine(args: readonly string[], known: readonly string[]): BenchOptions {
  const { values, positionals } = parsed(args);
  const unknown = positionals.filter((name) => !known.includes(name));
  if (unknown.length > 0)
    throw new BenchError(`there is no suite "${unknown.join('", "')}". Suites: ${known.join(', ')}`);
  if (values.output !== undefined && values.output !== 'json')
    throw new BenchError(`-o ${values.output}: only json`);
  if (values.json !== undefined && values.output !== undefined)
    throw new BenchError('--json FILE and -o json do not go together');
  const json = values.output === undefined ? values.json : '-';
  return {
    suites: known.filter((name) => positionals.length === 0 || positionals.includes(name)),
    ...(json !== undefined && { json }),
    ...(values.against !== undefined && { against: values.against }),
  };
}

function parsed(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        json: { type: 'string' },
        output: { type: 'string', short: 'o' },
        against: { type: 'string' },
      },
    });
  } catch (error) {
    throw new BenchError(`${error instanceof Error ? error.message : error}\nUsage: ${USAGE}`);
  }
}
