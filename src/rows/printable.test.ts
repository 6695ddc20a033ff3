import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { displayWidth, fitted, printable, safeJson } from './printable.ts';

/** Everything that a terminal may take as more than a character. */
const DANGEROUS = /[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]|\p{Cf}|\p{Cs}/u;

const hostile = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.string({
    unit: fc.constantFrom('\x1b', '[', '2', 'J', '\u009b', '\u202e', '\u2066', '\r', '\n', 'a', '\ud800'),
  }),
);

test('printable text has no character that a terminal acts on', () => {
  fc.assert(
    fc.property(hostile, (text) => {
      assert.doesNotMatch(printable(text), DANGEROUS);
    }),
  );
});

test('what is dangerous becomes a visible escape', () => {
  assert.equal(printable('\x1b[2Jvm'), '\\x1b[2Jvm');
  assert.equal(printable('\u009b31m'), '\\x9b31m');
  assert.equal(printable('gpj\u202eexe'), 'gpj\\u202eexe');
  assert.equal(printable('a\u{e0041}b'), 'a\\u{e0041}b');
  assert.equal(printable('\ud800'), '\\ud800');
  assert.equal(printable('a\nb\tc'), 'a\\x0ab\\x09c');
});

test('ordinary text stays as it is', () => {
  for (const text of ['web-1', 'größer', 'データ', 'C:\\temp', "it's 100 %", '😀']) {
    assert.equal(printable(text), text);
  }
});

test('JSON stays the same value and gets no dangerous character', () => {
  fc.assert(
    fc.property(hostile, (text) => {
      const json = safeJson({ text });
      assert.doesNotMatch(json, DANGEROUS);
      assert.deepEqual(JSON.parse(json), JSON.parse(JSON.stringify({ text })));
    }),
  );
});

test('width on a terminal: wide characters take two columns, combining ones none', () => {
  assert.equal(displayWidth('abc'), 3);
  assert.equal(displayWidth('データ'), 6);
  assert.equal(displayWidth('e\u0301'), 1);
  assert.equal(displayWidth('😀'), 2);
  // Wide since newer versions of Unicode, and in blocks that are not wide as a whole.
  assert.equal(displayWidth('⌚⚡⏰\u{1f7e0}\u{18d00}'), 10);
  assert.equal(displayWidth('☎\u303f\u4dc0'), 4);
});

test('fitted text is never wider than asked for', () => {
  fc.assert(
    fc.property(hostile, fc.integer({ min: 1, max: 40 }), (text, width) => {
      assert.ok(displayWidth(fitted(printable(text), width)) <= width);
    }),
  );
  assert.equal(fitted('a-long-name', 6), 'a-lon…');
});
