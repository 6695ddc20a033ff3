import { writeSync } from 'node:fs';
import { Writable } from 'node:stream';

const STDERR = 2;

/**
 * Puts a stream in the place of `process.stderr` that leaves the descriptor as it is. Returns the function that takes
 * that back.
 *
 * Node.js makes a pipe or a socket non-blocking when it opens it as `process.stderr`, for every process that shares it;
 * and it opens it unasked, whenever a socket is destroyed.
 */
export function keepStderrBlocking(): () => void {
  const original = Object.getOwnPropertyDescriptor(process, 'stderr')!;
  const stream = new Writable({
    write(chunk: Uint8Array, _encoding, done) {
      try {
        writeSync(STDERR, chunk);
      } catch {
        // Nobody reads it any more, or the program made it non-blocking and it is full.
      }
      done();
    },
  });
  Object.defineProperty(process, 'stderr', { ...original, get: () => stream });
  return () => {
    Object.defineProperty(process, 'stderr', original);
  };
}
