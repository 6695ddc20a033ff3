import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { BenchError } from './bench-error.ts';
import type { Measurement, SuiteResult } from './measurement.ts';

/** The module that runs one suite; every revision that can be compared with has it. */
export const SUITE_PROCESS = 'suite-process';

const NODE_OPTIONS = ['--enable-source-maps', '--expose-gc'];

/**
 * Runs a suite once, in a process of its own.
 *
 * @param dist the compiled tree that it is taken from.
 * @param signal ends the process.
 * @throws BenchError when the suite fails.
 */
export async function runSuite(dist: string, name: string, signal?: AbortSignal): Promise<SuiteResult> {
  const script = join(dist, 'bench', `${SUITE_PROCESS}.js`);
  const child = spawn(process.execPath, [...NODE_OPTIONS, script, name], {
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(signal && { signal }),
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  const how = await new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`cannot be run: ${error.message}`));
    child.once('close', (code, killedBy) => resolve(code === 0 ? '' : `ended with ${killedBy ?? code}`));
  });
  if (how !== '') throw new BenchError(`the suite ${name} ${how}`);
  return parse(name, output);
}

function parse(name: string, output: string): SuiteResult {
  let value: unknown;
  try {
    value = JSON.parse(output);
  } catch {
    throw new BenchError(`the suite ${name} printed something else than its result`);
  }
  if (!isResult(value)) throw new BenchError(`the suite ${name} printed a result of another form`);
  return value;
}

function isResult(value: unknown): value is SuiteResult {
  if (typeof value !== 'object' || value === null) return false;
  if ('skipped' in value) return typeof value.skipped === 'string';
  return (
    'measurements' in value && Array.isArray(value.measurements) && value.measurements.every(isMeasurement)
  );
}

function isMeasurement(value: Partial<Measurement> | null): boolean {
  return typeof value?.name === 'string' && typeof value.value === 'number' && typeof value.unit === 'string';
}
