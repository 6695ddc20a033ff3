import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { getRegister, STATE_SIZE } from '../../src/abi/state.ts';
import { findQemuMachines, openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { TestHandler } from '../kit/handler.ts';
import { Libvirt, whyNoLibvirt } from '../kit/libvirt.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

const NAME = `kvmi-test-${process.pid}`;

describe('a libvirt domain', { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let libvirt: Libvirt;
  let machine: QemuMachine;
  let handler: TestHandler;

  const virsh = (...args: string[]): Promise<string> => libvirt.virsh(...args);

  before(async () => {
    libvirt = await Libvirt.start();
    await virsh('create', libvirt.describeLinuxGuest(NAME));
    machine = await openQemu({ libvirt: NAME, uri: libvirt.uri });
    handler = await TestHandler.attach(machine);
  });
  after(async () => {
    await machine?.close();
    await virsh('destroy', NAME).catch(() => {});
    await libvirt?.stop();
  });

  async function rip(): Promise<bigint> {
    const vcpu = machine.vcpus[0]!;
    const state = new Uint8Array(STATE_SIZE);
    await handler.held(vcpu, async () => vcpu.readState(state));
    return getRegister(state, 'rip');
  }

  test('is found by its process, with its name', async () => {
    const found = findQemuMachines().find(({ name }) => name === NAME);
    assert.deepEqual(found?.address, { libvirt: NAME });
    assert.equal(machine.name, NAME);
    assert.equal(
      (await virsh('domuuid', NAME)).replaceAll('-', ''),
      Buffer.from(machine.uuid).toString('hex'),
    );
  });

  test('is read, and not changed, by others meanwhile', async () => {
    await rip();
    const other = await openQemu({ libvirt: NAME, uri: libvirt.uri });
    try {
      assert.equal(await other.memory.read(0x1000, new Uint8Array(8)), true);
      await assert.rejects(async () => other.attach(new TestHandler()), { code: 'E_BUSY' });
      await assert.rejects(async () => other.memory.write(0x1000, new Uint8Array(8)), { code: 'E_BUSY' });
    } finally {
      await other.close();
    }
    await rip();
  });

  test('runs, stops and is read', async () => {
    const rips = new Set<bigint>();
    for (let i = 0; i < 100 && rips.size < 2; i++) {
      rips.add(await rip());
      // Requests that follow at once are served at one stop.
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.equal(rips.size, 2, 'it executes');
    const bytes = new Uint8Array(4096);
    assert.equal(await machine.memory.read(0, bytes), true);
  });

  test('suspended and resumed by libvirt', async () => {
    // A suspend that comes while the VM is stopped for us would be lost.
    await rip();
    await new Promise((resolve) => setTimeout(resolve, 100));
    await virsh('suspend', NAME);
    assert.equal(await rip(), await rip(), 'it stands still');
    assert.equal(await virsh('domstate', NAME), 'paused');
    await virsh('resume', NAME);
    assert.equal(await virsh('domstate', NAME), 'running');
    assert.deepEqual(handler.preUnhooks, ['suspend']);
  });

  test('destroyed by libvirt', async () => {
    await virsh('destroy', NAME);
    await handler.gone;
    await assert.rejects(async () => machine.attach(new TestHandler()));
  });
});
