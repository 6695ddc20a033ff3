import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Gpa, PAGE_SIZE } from '../machine/index.ts';
import { keepFile } from './keep-file.ts';

/*
 * Where VMCOREINFO was found lately. A guest has it in the same place until it boots again, and so have its dumps; what
 * is there is looked at like any other page.
 */

const FILE = 'vmcoreinfo-places.json';
const MAX_PLACES = 32;
const MAX_GPA = 2 ** 52;

function isPlace(value: unknown): value is Gpa {
  return Number.isSafeInteger(value) && (value as number) > 0 && (value as number) < MAX_GPA;
}

/** The places of guests that were seen before, the latest first. */
export function rememberedPlaces(directory: string): readonly Gpa[] {
  try {
    const places: unknown = JSON.parse(readFileSync(join(directory, FILE), 'utf8'));
    if (!Array.isArray(places)) return [];
    return places.filter((place) => isPlace(place) && place % PAGE_SIZE === 0).slice(0, MAX_PLACES);
  } catch {
    return [];
  }
}

/** Keeps a place for the next time. Without the right to write there it is found anew each time. */
export function rememberPlace(directory: string, place: Gpa): void {
  const places = rememberedPlaces(directory);
  if (places[0] === place) return;
  const kept = [place, ...places.filter((other) => other !== place)].slice(0, MAX_PLACES);
  keepFile(directory, join(directory, FILE), JSON.stringify(kept));
}
