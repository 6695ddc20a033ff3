import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import type { JournalState } from '../../src/drivers/qemu/guard/journal.ts';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { journalOf, killBoth, nothingLeft, unharmed, until } from '../kit/guarded.ts';
import { TestHandler } from '../kit/handler.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { kvmi } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* The host side is killed while a vCPU has registers that are not its own. */

const ROUNDS = 4;
const LEAVES = [0, 1, 2, 4, 7, 0xb, 0x40000000, 0x80000000, 0x80000001, 0x80000002, 0x80000008];

const BORROWER = join(import.meta.dirname, 'borrower.js');

describe('a vCPU that executes something for the host side', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  const started: { kill(): Promise<void> }[] = [];

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    text = await KernelText.of(vm);
    await vm.run('(while true; do id -u >/dev/null; usleep 5000; done) &');
  });
  after(() => vm?.kill());
  afterEach(async () => {
    for (const host of started.splice(0)) await host.kill();
  });

  /** A host side that stands still while a vCPU works for it. */
  async function borrowing(what: 'cpuid' | 'cr') {
    const child = spawn(process.execPath, [BORROWER, vm.qmp, what], { stdio: ['ignore', 'pipe', 'inherit'] });
    const host = {
      pid: child.pid!,
      async kill() {
        const exited = child.exitCode === null && child.signalCode === null && once(child, 'exit');
        child.kill('SIGKILL');
        await exited;
      },
    };
    started.push(host);
    const borrows = once(child.stdout, 'data');
    await Promise.race([borrows, once(child, 'exit').then(() => assert.fail('the host side has ended'))]);
    const journal = journalOf(vm.pid)!;
    assert.notEqual(journal.borrowed, null, 'the registers are in the journal');
    return { host, journal };
  }

  /** Without the flags of a segment: SYSCALL leaves others than are read from the guest's table, for the same segment. */
  async function registers(): Promise<string> {
    return (await vm.monitor.hmp('info registers -a'))
      .replaceAll(/ HLT=./g, '')
      .replaceAll(/^((?:CS|SS) =\S+ \S+ \S+).*$/gm, '$1');
  }

  test(`others let the VM run while CPUID is read: it lives, and each answer is the same`, async () => {
    const answers = new Map<string, string>();
    let over = false;
    const others = (async () => {
      for (let i = 0; !over; i++) {
        await vm.monitor.execute('cont');
        await new Promise((resolve) => setTimeout(resolve, 15 + (i % 30)));
      }
    })();
    try {
      for (let round = 0; round < ROUNDS; round++) {
        // What was read once is not read again by the same one.
        const machine = await openQemu({ qmp: vm.qmp });
        try {
          const handler = await TestHandler.attach(machine);
          for (const leaf of LEAVES)
            for (const vcpu of machine.vcpus) {
              const read = await handler.held(vcpu, () => vcpu.cpuid(leaf, 0));
              const [key, answer] = [`vCPU ${vcpu.index}, leaf ${leaf.toString(16)}`, JSON.stringify(read)];
              assert.equal(answer, answers.get(key) ?? answer, key);
              answers.set(key, answer);
            }
        } finally {
          await machine.close();
        }
        await unharmed(vm, text, `round ${round}`);
      }
    } finally {
      over = true;
      await others;
    }
  });

  const deaths: readonly (readonly [
    who: string,
    (host: { pid: number; kill(): Promise<void> }) => Promise<void>,
  ])[] = [
    ['the host side is killed', (host) => host.kill()],
    [
      'the host side and its guard are killed',
      async (host) => {
        await killBoth(host);
        const { code, stdout, stderr } = await kvmi(['repair', `qemu:${vm.qmp}`, '-o', 'json']);
        assert.equal(code, 0, stderr);
        assert.equal(JSON.parse(stdout).rows[0].outcome, 'repaired');
      },
    ],
  ];
  for (const [who, die] of deaths) {
    test(`${who}: a paused vCPU has its registers again`, async () => {
      await vm.monitor.execute('stop');
      let journal: JournalState | undefined;
      try {
        const before = await registers();
        const { host, journal: written } = await borrowing('cpuid');
        journal = written;
        await until(async () => (await registers()) !== before, 'it has others');
        await die(host);
        await nothingLeft(vm, journal, who);
        assert.equal(await registers(), before);
      } finally {
        await vm.monitor.execute('cont');
      }
      await unharmed(vm, text, who);
    });

    for (const what of ['cpuid', 'cr'] as const) {
      test(`${who} during ${what}: the guest runs on`, async () => {
        const { host, journal } = await borrowing(what);
        await die(host);
        await nothingLeft(vm, journal, who);
        await unharmed(vm, text, who);
        assert.match(await vm.run('id -u'), /^0/);
        assert.deepEqual(
          vm.log.filter((line) => /BUG|Oops|panic/.test(line)),
          [],
        );
      });
    }
  }
});
