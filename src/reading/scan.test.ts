import { test } from 'node:test';
import fc from 'fast-check';
import { PAGE_SIZE } from '../machine/index.ts';
import { endsFirst } from './scan.ts';

test('both ends first, and all of memory once', () => {
  const pages = fc.integer({ min: 1, max: 4 << 20 });
  fc.assert(
    fc.property(fc.array(fc.tuple(pages, pages), { maxLength: 5 }), (parts) => {
      let at = 0;
      const ranges = parts.map(([gap, size]) => {
        const range = { gpa: at + gap * PAGE_SIZE, size: size * PAGE_SIZE };
        at = range.gpa + range.size;
        return range;
      });
      const sorted = endsFirst(ranges).toSorted((a, b) => a.gpa - b.gpa);
      for (const { gpa, size } of ranges) {
        for (let next = gpa; next < gpa + size; ) {
          const part = sorted.shift();
          if (part?.gpa !== next || part.size <= 0 || part.size % PAGE_SIZE !== 0) return false;
          next += part.size;
        }
      }
      return sorted.length === 0;
    }),
  );
});
