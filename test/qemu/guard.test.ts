import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const ROUNDS = 25;
/** Within a second on a machine that does nothing else; how soon is measured by a benchmark. */
const PATIENCE_MS = 10_000;
const FUNCTION = '__x64_sys_getuid';

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

  test(`at ${ROUNDS} moments with breakpoints armed: the guest runs on, unharmed`, async () => {
    for (let round = 0; round < ROUNDS; round++) {
      const host = spawn(process.execPath, [join(import.meta.dirname, 'victim.js'), vm.qmp, String(gpa)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(host.stdout!, 'data');
      await new Promise((resolve) => setTimeout(resolve, round * 13));
      host.kill('SIGKILL');
      await vm
        .nextTicks(1, PATIENCE_MS)
        .catch(() => assert.fail(`round ${round}: the guest's clock stands still`));
      await gone(`round ${round}`);
    }
    assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
    assert.equal((await vm.run('id -u')).trim(), '0', 'the function that had the breakpoint works');
    assert.deepEqual(
      vm.log.filter((line) => /BUG|Oops|panic|int3/.test(line)),
      [],
    );
  });

  /** Waits until the guard has removed the gdbstub and what the host left on tmpfs. */
  async function gone(when: string): Promise<void> {
    for (const deadline = Date.now() + PATIENCE_MS; ; ) {
      const chardevs = (await vm.monitor.execute('query-chardev')) as { label: string }[];
      const left = chardevs.filter(({ label }) => label === 'gdb');
      if (left.length === 0) break;
      assert.ok(Date.now() < deadline, `${when}: a gdbstub is left`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
});
