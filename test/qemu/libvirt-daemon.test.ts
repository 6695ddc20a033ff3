import assert from 'node:assert/strict';
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { until } from '../kit/guarded.ts';
import { KvmiProcess, NOBODY } from '../kit/kvmi-process.ts';
import { whyNoLibvirt } from '../kit/libvirt.ts';
import { hitsGoOn, hitsOf, LibvirtDomain } from '../kit/libvirt-domain.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* What may happen to libvirt's daemon while a domain is hooked. */

/** How long the daemon is away: more than virsh waits for it by itself. Half a minute where there is time. */
const AWAY_MS = process.env.KVMI_SOAK ? 30_000 : 5000;
describe("libvirt's daemon", { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let domain: LibvirtDomain;

  before(async () => {
    domain = await LibvirtDomain.start(`kvmi-daemon-${process.pid}`);
  });
  after(() => domain?.stop());

  async function ends(command: KvmiProcess, when: string): Promise<void> {
    const { journal } = domain;
    command.killGroup('SIGINT');
    assert.equal((await command.ended).code, EXIT.interrupted.code, command.stderr);
    assert.match(command.stderr, /the probe is removed/);
    await domain.unharmed(when, journal);
  }

  /** More often than events may have been lost. */
  async function isPausedAndResumed(command: KvmiProcess): Promise<void> {
    for (let round = 0; round < 3; round++) {
      // Each hit pauses it for a moment, in which it cannot be suspended.
      await until(async () => {
        await domain.virsh('suspend').catch(() => {});
        return domain.journal?.running === false;
      }, 'that it is suspended is seen');
      const before = hitsOf(command);
      await domain.virsh('resume');
      await command.seen('stdout', /rip/, before + 3);
      assert.equal(domain.journal?.running, true, 'that it is resumed is seen');
    }
  }

  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    test(`${signal}: kvmi goes on with its successor, and sees who suspends and resumes the domain`, async () => {
      const command = await domain.breaking();
      await domain.libvirt.restart(signal);
      await hitsGoOn(command);
      await isPausedAndResumed(command);
      await ends(command, signal);
    });
  }

  test(`it is away for ${AWAY_MS / 1000} s: kvmi goes on afterwards`, async () => {
    const command = await domain.breaking();
    const up = await domain.libvirt.down();
    await new Promise((resolve) => setTimeout(resolve, AWAY_MS));
    await up();
    await hitsGoOn(command);
    await isPausedAndResumed(command);
    await ends(command, 'it was away');
  });

  test("it goes away while a vCPU's state is read: the answer comes afterwards", async () => {
    await domain.hooked(async (readState) => {
      const up = await domain.libvirt.down();
      const state = readState();
      await up();
      await state;
      await readState();
    });
    await domain.unharmed('it was away');
  });

  test('it is away when kvmi is killed: the guest runs at once, the guard does the rest', async () => {
    const command = await domain.breaking();
    const { journal } = domain;
    const up = await domain.libvirt.down();
    try {
      command.kill('SIGKILL');
      await command.ended;
      await domain.ticking('without the daemon');
      assert.ok(domain.journal, 'what is left is in the journal');
    } finally {
      await up();
    }
    await domain.unharmed('it was away', journal);
  });

  test('it does not let a user in', async () => {
    chmodSync(join(domain.libvirt.directory, 'libvirt-sock'), 0o700);
    const { code, stderr } = await new KvmiProcess(['info', domain.target], domain.environment, NOBODY).ended;
    assert.equal(code, EXIT.permission.code, stderr);
    assert.match(stderr, /\[E_PERMISSION\]\nhint: Run kvmi as root, or as a member of the group/);
    await domain.unharmed('a stranger');
  });
});
