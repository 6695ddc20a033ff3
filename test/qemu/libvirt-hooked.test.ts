import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';
import { whyNoLibvirt } from '../kit/libvirt.ts';
import { hitsGoOn, LibvirtDomain } from '../kit/libvirt-domain.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* What may happen to a domain of libvirt, and to kvmi, while it is hooked. */

const SIGNALS = [
  ['SIGINT', EXIT.interrupted.code],
  ['SIGTERM', EXIT.terminated.code],
  ['SIGHUP', EXIT.terminated.code],
] as const;

describe('a hooked libvirt domain', { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let domain: LibvirtDomain;

  before(async () => {
    domain = await LibvirtDomain.start(`kvmi-hooked-${process.pid}`);
  });
  after(() => domain?.stop());

  for (const [signal, code] of SIGNALS) {
    test(`${signal} to the whole process group: the domain runs on, and nothing is left`, async () => {
      const command = await domain.breaking();
      command.killGroup(signal);
      assert.equal((await command.ended).code, code, command.stderr);
      assert.match(command.stderr, /the probe is removed/);
      await domain.unharmed(signal);
    });
  }

  test('kvmi is killed: virsh ends, and the domain runs on', async () => {
    const command = await domain.breaking();
    const { journal } = domain;
    command.kill('SIGKILL');
    await command.ended;
    await domain.unharmed('SIGKILL', journal);
  });

  test('every virsh is killed: kvmi goes on', async () => {
    const command = await domain.breaking();
    for (const pid of domain.virshs()) process.kill(pid, 'SIGKILL');
    await hitsGoOn(command);
    command.kill('SIGINT');
    assert.equal((await command.ended).code, EXIT.interrupted.code, command.stderr);
    await domain.unharmed('virsh was killed');
  });

  test('somebody else is told who holds it', async () => {
    const command = await domain.breaking();
    const { code, stderr } = await new KvmiProcess(['regs', domain.target], domain.environment).ended;
    assert.equal(code, EXIT.busy.code, stderr);
    assert.match(stderr, new RegExp(`held by kvmi break \\(process ${command.child.pid}\\) \\[E_BUSY\\]`));
    command.kill('SIGINT');
    await command.ended;
    await domain.unharmed('two');
  });

  test('a memory snapshot is made: it goes on, hooked or not', async () => {
    const command = await domain.waiting();
    const file = `${domain.libvirt.directory}/memory`;
    await domain.virsh('snapshot-create-as', 'snapshot', '--memspec', `file=${file}`);
    await domain.ticking('after the snapshot');
    command.kill('SIGINT');
    const { code, stderr } = await command.ended;
    // QEMU tells the two apart only when the copy is made.
    if (code !== EXIT.interrupted.code) assert.match(stderr, /is being migrated, or saved: it is unhooked/);
    await domain.virsh('snapshot-delete', 'snapshot', '--metadata');
    await domain.unharmed('a snapshot');
  });
});
