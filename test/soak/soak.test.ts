import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { parseCommandLine } from './command-line.ts';
import { fault } from './faults.ts';
import { MISFORTUNES } from './misfortunes.ts';
import { describePlan, planOf } from './plan.ts';
import { Tally } from './tally.ts';

const ROUNDS = 300;

/** What is planned for a guest that nobody manages. */
function plans(seed: number) {
  const possible = MISFORTUNES.filter(({ needs }) => needs !== 'libvirt');
  return Array.from({ length: ROUNDS }, (_, round) => planOf(seed, round, ['direct', 'tool'], possible));
}

describe('a soak', () => {
  test('does the same again with the same seed, and something else with another one', () => {
    const [first, again, other] = [1, 1, 2].map((seed) => plans(seed).map(describePlan));
    assert.deepEqual(first, again);
    assert.notDeepEqual(first, other);
    const times = [0, 1].map(() => plans(1).map(({ misfortunes }) => misfortunes[0]!.random.time(1000)));
    assert.deepEqual(times[0], times[1]);
  });

  test('lets everything happen that can, and nothing that cannot', () => {
    const happened = new Set<string>();
    for (const { host, misfortunes } of plans(3)) {
      assert.ok(misfortunes.filter(({ misfortune }) => misfortune.vm).length <= 1, 'one thing to the VM');
      for (const { misfortune } of misfortunes) {
        happened.add(misfortune.name);
        if (misfortune.needs === 'tool') assert.equal(host.needs, 'tool');
      }
    }
    const expected = MISFORTUNES.filter(({ needs }) => needs !== 'libvirt').map(({ name }) => name);
    assert.deepEqual([...happened].sort(), expected.sort());
  });

  test('--only takes a kind, or all that happens to one of them', () => {
    const names = (only: string) => parseCommandLine(['--only', only]).misfortunes.map(({ name }) => name);
    assert.deepEqual(names('vm:reset,stub:none'), ['vm:reset', 'stub:none']);
    assert.deepEqual(names('tool'), ['tool:KILL', 'tool:STOP', 'tool:TERM', 'tool:INT', 'tool:HUP']);
    assert.throws(() => names('moon'), /there is no "moon"\. Kinds: host:KILL/);
    assert.throws(() => parseCommandLine(['--rounds', 'many']), /--rounds many: not a number/);
  });

  test('counts what is wrong for each kind that happened', () => {
    const tally = new Tally();
    tally.add(['host:KILL'], []);
    assert.ok(tally.clean);
    tally.add(['host:KILL', 'vm:stop'], [fault('bytes changed', 'at 0x1', 3), fault('stubs', 'one')]);
    assert.ok(!tally.clean);
    const rows = tally.lines().map((line) => line.trim().split(/\s{2,}/));
    assert.deepEqual(rows[0]!.slice(0, 4), ['rounds', 'frozen', 'panics', 'bytes changed']);
    assert.deepEqual(rows.slice(1), [
      ['host:KILL', '2', '0', '0', '3', '0', '1', '0', '0', '0'],
      ['vm:stop', '1', '0', '0', '3', '0', '1', '0', '0', '0'],
      ['all', '2', '0', '0', '3', '0', '1', '0', '0', '0'],
    ]);
  });
});
