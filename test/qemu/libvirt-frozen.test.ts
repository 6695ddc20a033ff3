import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { whyNoLibvirt } from '../kit/libvirt.ts';
import { LibvirtDomain } from '../kit/libvirt-domain.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* libvirt's daemon stands still while a domain is hooked. */

/** How long it stands still: more than a command of the monitor may take otherwise. */
const STILL_MS = 11_000;

describe("libvirt's daemon stands still", { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let domain: LibvirtDomain;

  before(async () => {
    domain = await LibvirtDomain.start(`kvmi-frozen-${process.pid}`);
  });
  after(() => domain?.stop());

  test(`for ${STILL_MS / 1000} s while a vCPU's state is read: the answer comes afterwards`, async () => {
    await domain.hooked(async (readState) => {
      const thaw = domain.libvirt.freeze();
      const state = readState();
      await new Promise((resolve) => setTimeout(resolve, STILL_MS));
      thaw();
      await state;
    });
    await domain.unharmed('it stood still');
  });

  test('while kvmi unhooks: the guest runs at once, the guard does the rest', async () => {
    const command = await domain.breaking();
    const { journal } = domain;
    const thaw = domain.libvirt.freeze();
    try {
      command.killGroup('SIGINT');
      const { code, stderr } = await command.ended;
      assert.equal(code, EXIT.interrupted.code, stderr);
      assert.match(stderr, /the guard does what is left/);
      await domain.ticking('without the daemon');
      assert.ok(domain.journal, 'what is left is in the journal');
    } finally {
      thaw();
    }
    await domain.unharmed('it stood still', journal);
  });

  test('a second Ctrl-C tells what is still being undone', async () => {
    const command = await domain.breaking();
    const thaw = domain.libvirt.freeze();
    try {
      command.killGroup('SIGINT');
      await command.seen('stderr', /the probe is removed/);
      // One that comes at once would be the same one.
      await pause(200);
      command.killGroup('SIGINT');
      await command.seen('stderr', /still letting go of/);
    } finally {
      thaw();
    }
    assert.equal((await command.ended).code, EXIT.interrupted.code, command.stderr);
    await domain.unharmed('a second Ctrl-C');
  });
});
