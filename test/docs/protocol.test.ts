import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { protocolPage } from '../../scripts/protocol-doc.ts';

test('docs/reference/protocol.md is what the wire tables say', () => {
  const path = join(import.meta.dirname, '..', '..', '..', 'docs', 'reference', 'protocol.md');
  assert.equal(readFileSync(path, 'utf8'), protocolPage(), 'run `npm run docs` and commit the result');
});
