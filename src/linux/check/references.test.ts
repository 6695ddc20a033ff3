import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SyntheticLinux } from '../../../test/kit/synthetic-linux.ts';
import { type Baseline, Linux } from '../index.ts';

/* What a check is to compare with and cannot: the guest would be found well although nothing was compared. */

test('a vmlinux that is none, and a baseline of another boot, are errors', async () => {
  const linux = await Linux.find(new SyntheticLinux().memory, { cache: false });
  await assert.rejects(async () => linux.check({ vmlinux: new Uint8Array(4096) }), { code: 'E_ELF' });
  const baseline = { banner: 'Linux version 1.0', text: { start: 0n } } as unknown as Baseline;
  await assert.rejects(async () => linux.check({ baseline }), {
    code: 'E_BASELINE',
    hint: /--save-baseline/,
  });
});

test('each check is announced', async () => {
  const linux = await Linux.find(new SyntheticLinux().memory, { cache: false });
  const seen: string[] = [];
  await linux.check({ onCheck: (what) => void seen.push(what) });
  assert.deepEqual([seen[0], seen.at(-1)], ['text', 'hidden processes']);
});
