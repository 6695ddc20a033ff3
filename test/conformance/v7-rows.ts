import assert from 'node:assert/strict';
import { PAGE_SIZE } from '../../src/machine/index.ts';
import { encodeCommand } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import { EINVAL, ENOENT, EOPNOTSUPP, EPERM, hooked, type Rig, type Row } from './rig.ts';

const V7 = ['v7'] as const;
const PF_REPLY = { ctx_addr: 0n, ctx_size: 0, rep_complete: 0, ctx_data: new Uint8Array(0) };

/** A view of its own, as a number. */
async function createView({ peer }: Rig): Promise<number> {
  const { err, data } = await peer.command('VM_CREATE_EPT_VIEW', {});
  assert.equal(err, 0, 'VM_CREATE_EPT_VIEW');
  return data.view;
}

async function switchTo({ peer }: Rig, view: number): Promise<number> {
  return (await peer.command('VCPU_SET_EPT_VIEW', { view }, 0)).err;
}

/** What only dialect v7 has. */
export const V7_ROWS: readonly Row[] = [
  hooked('x', 'VM_CONTROL_CMD_RESPONSE', { dialects: V7 }, async ({ peer, dialect }) => {
    const control = (enable: number, now: number) =>
      peer.command('VM_CONTROL_CMD_RESPONSE', { enable, now, flags: 0 });
    assert.equal((await control(0, 0)).err, 0, 'this one is answered, later ones are not');
    peer.send(encodeCommand(dialect, 'VM_CHECK_COMMAND', 1, { id: 2 }));
    assert.equal((await control(1, 1)).err, 0, 'replies are on, this one is answered');
    assert.equal((await control(1, 0)).err, 0, 'they were on already');
    assert.equal((await peer.command('VM_GET_INFO', {})).err, 0);
  }),
  hooked('x', 'CMD_ERROR tells what failed while replies are off', { dialects: V7 }, async (rig) => {
    const { peer, dialect } = rig;
    const body = { event_id: rig.eventId('CMD_ERROR'), enable: 1 };
    assert.equal((await peer.command('VM_CONTROL_EVENTS', body)).err, 0);
    peer.send(encodeCommand(dialect, 'VM_CONTROL_CMD_RESPONSE', 1, { enable: 0, now: 1, flags: 1 }));
    peer.send(encodeCommand(dialect, 'VM_CHECK_COMMAND', 77, { id: 0xffff }));
    const event = await peer.event('CMD_ERROR');
    assert.deepEqual({ ...event.data }, { err: EINVAL, msg_seq: 77, msg_id: 3 });
    const on = await peer.command('VM_CONTROL_CMD_RESPONSE', { enable: 1, now: 1, flags: 0 });
    assert.equal(on.err, 0);
  }),
  hooked('x', 'where memory is', { dialects: V7 }, async ({ peer, machine, guest }) => {
    const gfn = guest.testPage.gpa / PAGE_SIZE;
    const { err, data } = await peer.command('VM_QUERY_PHYSICAL', { gfn });
    assert.equal(err, 0);
    assert.ok(data.gfn <= gfn && gfn < data.gfn + data.size, `${gfn} in ${data.gfn} + ${data.size}`);
    const free = await peer.command('VM_GET_NEXT_AVAILABLE_GFN', {});
    assert.equal(free.err, 0);
    const highest = machine.memory.regions.at(-1)!;
    assert.ok(free.data.gfn * PAGE_SIZE >= highest.gpa + highest.size);
    assert.equal((await peer.command('VM_QUERY_PHYSICAL', { gfn: free.data.gfn })).err, ENOENT);
  }),
  hooked('x', 'what needs a patched kernel is refused', { dialects: V7 }, async ({ peer }) => {
    assert.equal((await peer.command('VM_GET_MAP_TOKEN', {})).err, EOPNOTSUPP);
  }),
  hooked('x', 'a vCPU that is created', { dialects: V7, needs: ['create-vcpu', 'pause'] }, async (rig) => {
    const { peer, guest, machine } = rig;
    const body = { event_id: rig.eventId('CREATE_VCPU'), enable: 1 };
    assert.equal((await peer.command('VM_CONTROL_EVENTS', body)).err, 0);
    const count = machine.vcpus.length;
    await guest.addVcpu!();
    const event = await peer.event('CREATE_VCPU');
    assert.equal(event.vcpu, count);
    assert.equal(event.size, 544);
    peer.reply(event, 'continue');
    assert.equal((await peer.command('VM_GET_INFO', {})).data.vcpu_count, count + 1);
  }),
  hooked('x', 'views: create, switch, destroy', { dialects: V7, needs: ['views', 'pause'] }, async (rig) => {
    const { peer } = rig;
    const view = await createView(rig);
    assert.equal((await peer.command('VCPU_GET_EPT_VIEW', {}, 0)).data.view, 0);
    assert.equal(await switchTo(rig, view), 0);
    assert.equal((await peer.command('VCPU_GET_EPT_VIEW', {}, 0)).data.view, view);
    assert.equal((await peer.command('VM_DESTROY_EPT_VIEW', { view })).err, EINVAL, 'in use');
    assert.equal(await switchTo(rig, 0), 0);
    assert.equal(await switchTo(rig, 999), EINVAL, 'no such view');
    assert.equal((await peer.command('VCPU_CONTROL_EPT_VIEW', { view, visible: 1 }, 0)).err, 0);
    assert.equal((await peer.command('VM_DESTROY_EPT_VIEW', { view })).err, 0);
    assert.equal(await switchTo(rig, view), EINVAL, 'destroyed');
  }),
  hooked(
    'x',
    'views: access rights of their own',
    { dialects: V7, needs: ['views', 'page-write', 'pause'], actions: ['write-page'] },
    async (rig) => {
      const { peer, guest } = rig;
      const view = await createView(rig);
      const entries = [{ gpa: guest.testPage.gpa, access: 1 }];
      assert.equal((await peer.command('VM_SET_PAGE_ACCESS', { view, count: 1, entries })).err, 0);
      await rig.enable('PF');
      await patiently(guest.act('write-page'), 'a write in view 0');
      assert.equal(await switchTo(rig, view), 0);
      const done = guest.act('write-page');
      const event = await peer.event('PF');
      assert.equal(event.data.view, view);
      assert.equal(await switchTo(rig, 0), 0, 'switched during the event');
      peer.reply(event, 'retry', PF_REPLY);
      await patiently(done, 'the write, in view 0 again');
      await rig.enable('PF', 0);
    },
  ),
  hooked(
    'x',
    'views: another frame behind an address',
    { dialects: V7, needs: ['views', 'memory-write', 'pause'], actions: ['read-page'] },
    async (rig) => {
      const { peer, guest } = rig;
      const gfn = guest.testPage.gpa / PAGE_SIZE;
      await peer.command('VM_WRITE_PHYSICAL', { gpa: gfn * PAGE_SIZE, size: 1, data: Uint8Array.of(0x11) });
      await peer.command('VM_WRITE_PHYSICAL', {
        gpa: (gfn + 1) * PAGE_SIZE,
        size: 1,
        data: Uint8Array.of(0x22),
      });
      const change = async (to: number): Promise<number> => {
        const data = new Uint8Array(24);
        const view = new DataView(data.buffer);
        view.setBigUint64(8, BigInt(gfn), true);
        view.setBigUint64(16, to < 0 ? 2n ** 64n - 1n : BigInt(to), true);
        return (await peer.command('VCPU_CHANGE_GFN', { data }, 0)).err;
      };
      assert.equal((await guest.act('read-page')) & 0xffn, 0x11n);
      assert.equal(await change(gfn + 1), 0);
      assert.equal((await guest.act('read-page')) & 0xffn, 0x22n);
      assert.equal(await change(gfn), 0, 'the same frame twice restores it');
      assert.equal((await guest.act('read-page')) & 0xffn, 0x11n);
      assert.equal(await change(-1), EPERM, 'all-ones is reserved');
    },
  ),
  hooked(
    'x',
    'sub-page write rights',
    { dialects: V7, needs: ['sub-page', 'page-write', 'pause'], actions: ['write-page'] },
    async (rig) => {
      const { peer, guest } = rig;
      const { gpa } = guest.testPage;
      assert.equal((await peer.command('VM_CONTROL_SPP', { enable: 1 })).err, 0);
      await rig.enable('PF');
      const entries = [{ gpa, access: 5 }];
      assert.equal((await peer.command('VM_SET_PAGE_ACCESS', { view: 0, count: 1, entries })).err, 0);
      const bitmap = async (bits: number): Promise<void> => {
        const body = { view: 0, count: 1, entries: [{ gpa, bitmap: bits }] };
        assert.equal((await peer.command('VM_SET_PAGE_WRITE_BITMAP', body)).err, 0);
      };
      await bitmap(1);
      await patiently(guest.act('write-page'), 'a write to the sub-page that allows it');
      await bitmap(2);
      const done = guest.act('write-page');
      const event = await peer.event('PF');
      peer.reply(event, 'continue', PF_REPLY);
      await patiently(done, 'the write that was let through');
      await rig.enable('PF', 0);
    },
  ),
  hooked('x', 'frames come and go', { dialects: V7, needs: ['frames', 'pause'] }, async ({ peer }) => {
    const { data } = await peer.command('VM_GET_NEXT_AVAILABLE_GFN', {});
    const { gfn } = data;
    const gpa = gfn * PAGE_SIZE;
    assert.equal((await peer.command('VM_READ_PHYSICAL', { gpa, size: 1 })).err, ENOENT);
    assert.equal((await peer.command('VCPU_ALLOC_GFN', { gfn }, 0)).err, 0);
    const read = await peer.command('VM_READ_PHYSICAL', { gpa, size: PAGE_SIZE });
    assert.ok(
      read.data.data.every((byte) => byte === 0),
      'a page of zeros',
    );
    assert.equal((await peer.command('VCPU_FREE_GFN', { gfn }, 0)).err, 0);
    assert.equal((await peer.command('VM_READ_PHYSICAL', { gpa, size: 1 })).err, ENOENT);
    assert.equal((await peer.command('VCPU_FREE_GFN', { gfn }, 0)).err, ENOENT, 'freed twice');
  }),
];
