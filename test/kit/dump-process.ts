import { dumpMemory } from '../../src/drivers/snapshot/index.ts';
import { type BackedRegion, RegionMemory } from '../../src/machine/index.ts';

/*
 * Dumps memory to a file and prints a line for each chunk, until it is killed or done: dump-process.js FILE FORMAT
 * COMPRESSION GENERATION. What is in memory depends on the generation, as that of a guest that ran on.
 */

const MEBIBYTE = 1 << 20;
const DUMP_SIZE = 160 * MEBIBYTE;

/** Two runs; each MiB is filled with a byte that changes from one generation to the next, some of them with zeros. */
function memoryOf(generation: number): RegionMemory {
  const region = (gpa: number, size: number): BackedRegion => ({
    gpa,
    size,
    readonly: false,
    backend: {
      read(offset, into) {
        for (let at = 0; at < into.length; at += MEBIBYTE) {
          const number = Math.floor((gpa + offset + at) / MEBIBYTE);
          const isZero = (number + generation) % 3 === 0;
          into.fill(isZero ? 0 : 1 + ((number * 7 + generation) % 255), at, at + MEBIBYTE);
        }
        return true;
      },
    },
  });
  return new RegionMemory([region(0, DUMP_SIZE / 2), region(DUMP_SIZE, DUMP_SIZE / 2)]);
}

const [file, format, compression, generation] = process.argv.slice(2);
if (file !== undefined && format !== undefined) {
  const { resumed } = await dumpMemory({ memory: memoryOf(Number(generation)), name: 'vm' }, file, {
    format: format as 'elf' | 'raw' | 'lime',
    ...(compression === 'zstd' && { compression }),
    onProgress: ({ done }) => process.stdout.write(`${done}\n`),
  });
  process.stdout.write(`end ${resumed}\n`);
}
