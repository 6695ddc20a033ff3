import { createRequire } from 'node:module';

export type { KoffiFunc, LibraryHandle } from 'koffi';
export type Koffi = typeof import('koffi');

/** koffi, which calls C: an optional dependency. Throws when it is missing or does not fit this platform. */
export function loadKoffi(): Koffi {
  return createRequire(import.meta.url)('koffi') as Koffi;
}
