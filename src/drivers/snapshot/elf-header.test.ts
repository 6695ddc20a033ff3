import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { stateAt } from '../../../test/kit/dump-memory.ts';
import { elfHeader } from './elf-header.ts';

const PAGE = 4096;
const MEBIBYTE = 1 << 20;

interface Segment {
  readonly offset: number;
  readonly gva: bigint;
  readonly gpa: number;
  readonly size: number;
}

function segmentsOf(header: Buffer): Segment[] {
  const segments: Segment[] = [];
  for (let i = 0; i < header.readUInt16LE(56); i++) {
    const at = 64 + 56 * i;
    if (header.readUInt32LE(at) !== 1) continue;
    segments.push({
      offset: Number(header.readBigUInt64LE(at + 8)),
      gva: header.readBigUInt64LE(at + 16),
      gpa: Number(header.readBigUInt64LE(at + 24)),
      size: Number(header.readBigUInt64LE(at + 40)),
    });
  }
  return segments;
}

const runs = fc
  .array(fc.tuple(fc.integer({ min: 1, max: 90_000 }), fc.integer({ min: 0, max: 5000 })), {
    minLength: 1,
    maxLength: 6,
  })
  .map((sizes) => {
    let gpa = 0;
    return sizes.map(([pages, hole]) => {
      const run = { gpa, size: pages * PAGE };
      gpa += (pages + hole) * PAGE;
      return run;
    });
  });

test('segments are the runs, in order, without overlap, wherever the kernel is', () => {
  fc.assert(
    fc.property(runs, fc.integer({ min: -1, max: 500_000 }), (all, page) => {
      const vmcoreinfo =
        page < 0
          ? undefined
          : `OSRELEASE=6\nSYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=${page * PAGE - 16 * MEBIBYTE}\n`;
      const { header, offsets } = elfHeader(all, { states: [stateAt(1n)], vmcoreinfo });
      const segments = segmentsOf(header);
      for (const [i, run] of all.entries()) {
        const inRun = segments.filter(({ gpa }) => gpa >= run.gpa && gpa < run.gpa + run.size);
        let { gpa } = run;
        for (const segment of inRun) {
          assert.equal(segment.gpa, gpa);
          assert.equal(segment.offset, offsets[i]! + gpa - run.gpa);
          gpa += segment.size;
        }
        assert.equal(gpa, run.gpa + run.size, 'all of the run');
      }
      const named = segments.filter(({ gva }) => gva !== 0n);
      const isThere = all.some(({ gpa, size }) => page * PAGE >= gpa && page * PAGE < gpa + size);
      assert.deepEqual(
        named.map(({ gva, gpa }) => [gva, gpa]),
        page >= 0 && isThere ? [[0xffff_ffff_8100_0000n, page * PAGE]] : [],
      );
    }),
  );
});
