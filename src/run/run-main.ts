#!/usr/bin/env node
import { KvmiError, messageOf } from '../error.ts';
import type { Log } from '../host/log.ts';
import type { RunDialect } from './requests.ts';
import { runUnderKvmi } from './run.ts';

/*
 * node run-main.js [--dialect=NAME] [--disabled] -- PROGRAM ARGUMENTS …
 */

const separator = process.argv.indexOf('--');
const options = process.argv.slice(2, separator < 0 ? undefined : separator);
const dialect = options.find((option) => option.startsWith('--dialect='))?.slice('--dialect='.length);
const print = (message: string): void => console.error(`kvmi: ${message}`);
const log: Log = { info: print, warn: print, error: print };

try {
  process.exitCode = await runUnderKvmi(separator < 0 ? [] : process.argv.slice(separator + 1), {
    ...(dialect && { dialect: dialect as RunDialect }),
    enabled: !options.includes('--disabled'),
    log,
  });
} catch (error) {
  print(messageOf(error));
  if (error instanceof KvmiError && error.hint) print(error.hint);
  process.exitCode = 127;
}
