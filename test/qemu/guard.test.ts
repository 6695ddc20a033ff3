import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { nothingLeft, unharmed, Victim } from '../kit/guarded.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const ROUNDS = Number(process.env.KVMI_SOAK_ROUNDS ?? 50);
const LONGEST_MS = 400;
const FUNCTION = '__x64_sys_getuid';
const SEED = Number(process.env.KVMI_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Park and Miller's generator: the same moments again with the same seed. */
function* moments(): Generator<number> {
  for (let state = SEED || 1; ; ) {
    state = (state * 48271) % 0x7fffffff;
    yield (state / 0x7fffffff) * LONGEST_MS;
  }
}

describe('the host side of a QEMU machine is killed', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let gpa: number;

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    const { [FUNCTION]: gva } = await symbolsOf(vm, [FUNCTION]);
    const printed = await vm.monitor.hmp(`gva2gpa 0x${gva!.toString(16)}`);
    gpa = Number(/gpa: (0x[0-9a-f]+)/.exec(printed)![1]);
    text = await KernelText.of(vm);
    // Both vCPUs run into the breakpoint all the time.
    await vm.run('(while true; do id -u >/dev/null; done) & (while true; do id -u >/dev/null; done) &');
  });
  after(() => vm?.kill());

  test(`at ${ROUNDS} moments with breakpoints armed: the guest runs on, unharmed`, async (t) => {
    t.diagnostic(`KVMI_SEED=${SEED}`);
    const moment = moments();
    for (let round = 0; round < ROUNDS; round++) {
      const host = new Victim(vm.qmp, gpa);
      const journal = await host.armed(vm.pid);
      await new Promise((resolve) => setTimeout(resolve, moment.next().value));
      await host.kill();
      const when = `KVMI_SEED=${SEED}, round ${round}`;
      await nothingLeft(vm, journal, when);
      await unharmed(vm, text, when);
      const { status } = (await vm.monitor.execute('query-status')) as { status: string };
      assert.equal(status, 'running', when);
    }
    assert.equal((await vm.run('id -u')).trim(), '0', 'the function that had the breakpoint works');
    assert.deepEqual(
      vm.log.filter((line) => /BUG|Oops|panic|int3/.test(line)),
      [],
    );
  });
});
