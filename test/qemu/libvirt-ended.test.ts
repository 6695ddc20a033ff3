import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { until } from '../kit/guarded.ts';
import { whyNoLibvirt } from '../kit/libvirt.ts';
import { LibvirtDomain } from '../kit/libvirt-domain.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Ways in which a domain of libvirt ends while it is hooked. */

describe('a hooked libvirt domain', { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let domain: LibvirtDomain;

  before(async () => {
    domain = await LibvirtDomain.start(`kvmi-ended-${process.pid}`);
  });
  after(() => domain?.stop());

  // What libvirt finds paused by kvmi it restores as paused unless told.
  const save = () => `${domain.libvirt.directory}/saved`;
  const ends: readonly (readonly [
    what: string,
    said: RegExp,
    end: () => Promise<unknown>,
    again?: () => Promise<unknown>,
  ])[] = [
    [
      'saved',
      /is being migrated, or saved: it is unhooked/,
      () => domain.virsh('save', save(), '--running'),
      () => domain.libvirt.virsh('restore', save()),
    ],
    [
      'managed-saved',
      /is being migrated, or saved: it is unhooked/,
      () => domain.virsh('managedsave', '--running'),
      () => domain.virsh('start'),
    ],
    ['destroyed', /was destroyed/, () => domain.virsh('destroy'), () => domain.virsh('start')],
    [
      'shut down',
      // libvirt has QEMU's word for it, unless it notices first that the monitor is closed.
      /was shut down|crashed/,
      () => domain.virsh('qemu-monitor-command', '{"execute":"quit"}').catch(() => {}),
    ],
  ];
  for (const [what, said, end, again] of ends) {
    test(`it is ${what}: kvmi ends and says so, and the domain goes on later unharmed`, async () => {
      const command = await domain.waiting();
      const { journal } = domain;
      await end();
      assert.equal((await command.ended).code, EXIT.error.code, command.stderr);
      assert.match(command.stderr, said);
      assert.match(command.stderr, /the VM is gone/);
      assert.doesNotMatch(command.stderr, /the probe is removed/);
      await until(() => domain.virshs().length === 0, 'virsh is left');
      await until(async () => (await domain.state) === 'shut off', 'it is shut off');
      if (!again) return;
      await again();
      await domain.unharmed(what, journal);
    });
  }
});
