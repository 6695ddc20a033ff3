import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** Starts a compiled script below dist/ and waits until it prints `word`. */
export async function startChild(
  script: string,
  args: readonly string[],
  word: string,
): Promise<ChildProcess> {
  const path = join(import.meta.dirname, '..', script);
  const child = spawn(process.execPath, [path, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  for await (const line of createInterface(child.stdout!)) {
    if (line === word) {
      child.stdout!.resume();
      return child;
    }
  }
  throw new Error(`${script} ended without saying "${word}"`);
}
