import { lstatSync, readdirSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { readText } from '../../../system/proc.ts';
import { runtimeDirectory } from '../../../system/runtime-directory.ts';

const NAME = /^qmp-[0-9a-f]{16}(\.\d+)?$/;

/** Removes the sockets of offers whose process was killed: nobody listens there, and nobody will. */
export async function sweepOffers(): Promise<void> {
  const directory = runtimeDirectory();
  if (directory === undefined) return;
  const names = readdirSync(directory).filter((name) => NAME.test(name));
  if (names.length === 0) return;
  const known = new Set((readText('/proc/net/unix') ?? '').split('\n').map((line) => line.split(' ').at(-1)));
  const silent = names.map((name) => join(directory, name)).filter((path) => !known.has(path));
  await Promise.all(silent.map(removeWhenDead));
}

/** Those who listen in another network namespace are not in the list, but answer. */
async function removeWhenDead(path: string): Promise<void> {
  try {
    const { ino } = lstatSync(path);
    const dead = await refuses(path);
    if (dead && lstatSync(path).ino === ino) rmSync(path);
  } catch {
    // Somebody else was quicker.
  }
}

function refuses(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.on('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ECONNREFUSED'));
  });
}
