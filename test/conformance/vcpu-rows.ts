import assert from 'node:assert/strict';
import { PAGE_SIZE } from '../../src/machine/index.ts';
import { encodeCommand } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import { EBUSY, EINVAL, EOPNOTSUPP, EPERM, hooked, type Rig, type Row } from './rig.ts';
import { getRegister, getU64At } from './state.ts';

const NEWER = ['v9', 'v12'] as const;

/** Sets one byte of a payload. */
function withByte(at: number, value: number): (payload: Uint8Array) => Uint8Array {
  return (payload) => {
    payload[at] = value;
    return payload;
  };
}

/** PAUSE, and the event that it brings. */
async function pauseEvent(rig: Rig, wait = 1) {
  const { err } = await rig.peer.command('VM_PAUSE_VCPU', { wait }, 0);
  assert.equal(err, 0, 'PAUSE');
  const event = await rig.peer.event('PAUSE');
  assert.equal(event.size, rig.eventSize(0), 'payload of the PAUSE event');
  assert.equal(event.vcpu, 0);
  return event;
}

/** Where padding of the body is, in the payload of a vCPU command. */
async function expectPadding(
  rig: Rig,
  send: (change: (payload: Uint8Array) => Uint8Array) => Promise<{ err: number }>,
  offsets: readonly number[],
) {
  for (const at of offsets) {
    assert.equal((await send(withByte(at, 1))).err, EINVAL, `${rig.dialect.name}: padding at ${at}`);
  }
}

/** Commands that a vCPU carries out, and pause. */
export const VCPU_ROWS: readonly Row[] = [
  hooked('35, 36', 'VCPU_GET_INFO', { needs: ['pause'] }, async ({ peer }) => {
    const { err, size } = await peer.command('VCPU_GET_INFO', {}, 0);
    assert.equal(err, 0);
    assert.equal(size, 16);
    assert.equal((await peer.command('VCPU_GET_INFO', {}, 99)).err, EINVAL, 'no such vCPU');
    const { err: noPayload } = await peer.commandBytes('VCPU_GET_INFO', () => new Uint8Array(0), {}, 0);
    assert.equal(noPayload, 0, 'a vCPU command without payload is for vCPU 0');
  }),
  hooked(
    '37-39',
    'a pause of a vCPU that stands still is acknowledged at once; its event comes when it runs',
    { needs: ['pause'], actions: ['noop'], holds: true },
    async (rig) => {
      for (let round = 0; round < 2; round++) {
        await rig.guest.hold!();
        assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 1 }, 0)).err, 0);
        assert.deepEqual(rig.peer.pendingEvents, [], 'no event before the vCPU runs');
        // On a busy machine the vCPU has been served where it stands, and its device manager waits for the answer.
        const released = rig.guest.release!();
        const event = await rig.peer.event('PAUSE');
        assert.equal(event.size, rig.eventSize(0));
        rig.peer.reply(event, 'continue');
        await released;
        await rig.guest.act('noop');
      }
    },
  ),
  hooked(
    'x',
    'a pause of a vCPU that is not started is acknowledged at once; its event comes when it is started',
    { needs: ['pause'], starts: true },
    async (rig) => {
      for (const vcpu of [0, 1])
        assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 1 }, vcpu)).err, 0, `vCPU ${vcpu}`);
      const first = await rig.peer.event('PAUSE');
      assert.equal(first.vcpu, 0);
      rig.peer.reply(first, 'continue');
      assert.equal((await rig.peer.command('VCPU_GET_INFO', {}, 0)).err, 0, 'vCPU 0 goes on');
      assert.deepEqual(rig.peer.pendingEvents, [], 'no event of vCPU 1 before it is started');
      await rig.guest.startVcpu!();
      const second = await rig.peer.event('PAUSE');
      assert.equal(second.vcpu, 1);
      rig.peer.reply(second, 'continue');
    },
  ),
  hooked('38, 39', 'each pause brings one event', { needs: ['pause'] }, async (rig) => {
    for (let i = 0; i < 3; i++)
      assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
    for (let i = 0; i < 3; i++) rig.peer.reply(await rig.peer.event('PAUSE'), 'continue');
    assert.equal((await rig.peer.command('VCPU_GET_INFO', {}, 0)).err, 0, 'the vCPU answers again');
  }),
  hooked('40, 41', 'pause: arguments and permission', { dialects: NEWER, needs: ['pause'] }, async (rig) => {
    const { peer, introspection } = rig;
    assert.equal((await peer.command('VM_PAUSE_VCPU', { wait: 2 }, 0)).err, EINVAL, 'wait 2');
    assert.equal((await peer.command('VM_PAUSE_VCPU', { wait: 0 }, 99)).err, EINVAL, 'vCPU 99');
    const header = rig.dialect.name === 'v12' ? 0 : 8;
    const offsets = rig.dialect.name === 'v12' ? [3, 4, 7] : [header + 1, header + 2, header + 4, 2, 4];
    await expectPadding(rig, (change) => peer.commandBytes('VM_PAUSE_VCPU', change, { wait: 0 }, 0), offsets);
    await introspection.event({ allow: 0, id: rig.eventId('PAUSE') });
    assert.equal((await peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, EPERM, 'not allowed');
  }),
  hooked('x', 'the 1003rd pause is refused', { needs: ['pause'], holds: true }, async (rig) => {
    await rig.guest.hold!();
    const pauses = Array.from({ length: 1003 }, () => rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0));
    const answers = await Promise.all(pauses);
    assert.ok(answers.slice(0, 1002).every(({ err }) => err === 0));
    assert.equal(answers[1002]!.err, EBUSY);
    // A vCPU that stands still for long is served where it stands, and its device manager waits for it then.
    const released = rig.guest.release!();
    await rig.unhook();
    await released;
  }),
  hooked('42-45', 'VCPU_CONTROL_EVENTS', { needs: ['pause'] }, async (rig) => {
    const { peer, introspection, dialect } = rig;
    const event_id = rig.eventId('PAUSE');
    const control = async (id: number, enable: number): Promise<number> =>
      (await peer.command('VCPU_CONTROL_EVENTS', { event_id: id, enable }, 0)).err;
    assert.equal(await control(event_id, 1), 0);
    assert.equal(await control(event_id, 0), 0);
    assert.equal(await control(event_id, 2), dialect.name === 'v7' ? 0 : EINVAL, 'enable 2');
    assert.equal(await control(0xffff, 1), EINVAL, 'unknown event');
    assert.equal(await control(rig.eventId('UNHOOK'), 1), EINVAL, 'an event of the VM');
    await expectPadding(
      rig,
      (change) => peer.commandBytes('VCPU_CONTROL_EVENTS', change, { event_id, enable: 1 }, 0),
      [11, 12, 15],
    );
    await introspection.event({ allow: 0, id: event_id });
    assert.equal(await control(event_id, 1), EPERM, 'not allowed');
  }),
  hooked('46-48', 'VCPU_GET_REGISTERS', { needs: ['pause', 'registers'] }, async (rig) => {
    const { peer, dialect } = rig;
    const none = await peer.command('VCPU_GET_REGISTERS', { nmsrs: 0, msrs_idx: [] }, 0);
    assert.equal(none.err, 0);
    assert.equal(none.size, 8 + 472);
    assert.ok([2, 4, 8].includes(none.data.mode), `mode ${none.data.mode}`);
    const efer = await peer.command('VCPU_GET_REGISTERS', { nmsrs: 1, msrs_idx: [0xc0000080] }, 0);
    assert.equal(efer.size, 8 + 472 + 16);
    assert.equal(efer.data.msrs[0]!.index, 0xc0000080);
    assert.equal(efer.data.msrs[0]!.data, getU64At(efer.data.sregs, 264), 'EFER twice');
    const bad = await peer.command('VCPU_GET_REGISTERS', { nmsrs: 1, msrs_idx: [0xffffffff] }, 0);
    if (dialect.name === 'v7') assert.deepEqual([bad.err, bad.data.msrs[0]?.data], [0, 0n]);
    else assert.equal(bad.err, EINVAL, 'an MSR that cannot be read');
    const many = { nmsrs: 482, msrs_idx: new Array<number>(482).fill(0xc0000080) };
    const large = await peer.command('VCPU_GET_REGISTERS', many, 0);
    assert.equal(large.err, dialect.name === 'v7' ? -12 : EINVAL, 'a reply that does not fit');
    const padded = (change: (payload: Uint8Array) => Uint8Array) =>
      peer.commandBytes('VCPU_GET_REGISTERS', change, { nmsrs: 0, msrs_idx: [] }, 0);
    await expectPadding(rig, padded, [10, 12, 15]);
  }),
  hooked(
    '49',
    'VCPU_SET_REGISTERS outside an event',
    { needs: ['pause', 'set-registers'] },
    async ({ peer }) => {
      const regs = new Uint8Array(144);
      assert.equal((await peer.command('VCPU_SET_REGISTERS', { regs }, 0)).err, EOPNOTSUPP);
    },
  ),
  hooked('50', 'VCPU_SET_REGISTERS during an event', { needs: ['pause', 'set-registers'] }, async (rig) => {
    const { peer, dialect } = rig;
    const event = await pauseEvent(rig);
    const regs = event.state.slice(8, 152);
    if (dialect.name === 'v12') {
      const { err } = await peer.commandBytes(
        'VCPU_SET_REGISTERS',
        (payload) => payload.slice(0, 100),
        { regs },
        0,
      );
      assert.equal(err, EINVAL, 'shorter than kvm_regs');
    }
    assert.equal((await peer.command('VCPU_SET_REGISTERS', { regs }, 0)).err, 0);
    const seen = await peer.command('VCPU_GET_REGISTERS', { nmsrs: 0, msrs_idx: [] }, 0);
    assert.deepEqual(new Uint8Array(seen.data.regs), regs, 'registers during the event');
    peer.reply(event, 'continue');
    assert.equal((await peer.command('VCPU_GET_INFO', {}, 0)).err, 0, 'the vCPU goes on');
  }),
  hooked(
    'x',
    'the last SET_REGISTERS wins, and shows after the reply',
    { needs: ['pause', 'set-registers'] },
    async (rig) => {
      const { peer } = rig;
      const event = await pauseEvent(rig);
      const original = event.state.slice(8, 152);
      for (const r15 of [1, 2, 0x5a]) {
        const regs = original.slice();
        regs[120] = r15;
        assert.equal((await peer.command('VCPU_SET_REGISTERS', { regs }, 0)).err, 0);
      }
      const during = await peer.command('VCPU_GET_REGISTERS', { nmsrs: 0, msrs_idx: [] }, 0);
      assert.deepEqual(new Uint8Array(during.data.regs), original, 'the old values until the reply');
      assert.equal((await peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
      peer.reply(event, 'continue');
      const next = await peer.event('PAUSE');
      assert.equal(getRegister(next.state, 'r15') & 0xffn, 0x5an, 'r15 of the last SET_REGISTERS');
      assert.equal((await peer.command('VCPU_SET_REGISTERS', { regs: original }, 0)).err, 0, 'put back');
      peer.reply(next, 'continue');
    },
  ),
  hooked('51', 'VCPU_GET_CPUID', { needs: ['pause', 'cpuid'] }, async ({ peer }) => {
    const { err, data, size } = await peer.command('VCPU_GET_CPUID', { function: 0, index: 0 }, 0);
    assert.equal(err, 0);
    assert.equal(size, 24);
    assert.ok(data.eax >= 1, 'highest leaf');
    const none = await peer.command('VCPU_GET_CPUID', { function: 0x7fff0000, index: 0 }, 0);
    assert.equal(none.err, -2, 'no such leaf');
  }),
  hooked('60', 'VCPU_CONTROL_CR: arguments', { dialects: NEWER, needs: ['pause', 'cr'] }, async (rig) => {
    const { peer } = rig;
    assert.equal((await peer.command('VCPU_CONTROL_CR', { cr: 0, enable: 2 }, 0)).err, EINVAL);
    assert.equal((await peer.command('VCPU_CONTROL_CR', { cr: 99, enable: 1 }, 0)).err, EINVAL);
    const send = (change: (payload: Uint8Array) => Uint8Array) =>
      peer.commandBytes('VCPU_CONTROL_CR', change, { cr: 0, enable: 1 }, 0);
    await expectPadding(rig, send, [10, 12, 15]);
  }),
  hooked('66, 67', 'VCPU_GET_XCR', { needs: ['pause', 'xcr'] }, async (rig) => {
    const { err, size, data } = await rig.peer.command('VCPU_GET_XCR', { xcr: 0 }, 0);
    assert.equal(err, 0);
    assert.equal(size, 16);
    assert.equal(data.value & 1n, 1n, 'x87 state is always enabled');
    assert.equal((await rig.peer.command('VCPU_GET_XCR', { xcr: 1 }, 0)).err, EINVAL);
    const send = (change: (payload: Uint8Array) => Uint8Array) =>
      rig.peer.commandBytes('VCPU_GET_XCR', change, { xcr: 0 }, 0);
    await expectPadding(rig, send, [9, 15]);
  }),
  hooked('68', 'VCPU_GET_XSAVE', { needs: ['pause', 'xsave'] }, async ({ peer }) => {
    const { err, size } = await peer.command('VCPU_GET_XSAVE', {}, 0);
    assert.equal(err, 0);
    assert.equal(size, 8 + 4096);
  }),
  hooked('69', 'VCPU_SET_XSAVE', { needs: ['pause', 'xsave', 'set-xsave'] }, async ({ peer, dialect }) => {
    const { data } = await peer.command('VCPU_GET_XSAVE', {}, 0);
    assert.equal((await peer.command('VCPU_SET_XSAVE', { data: data.area }, 0)).err, 0);
    const longer = Buffer.concat([data.area, Buffer.alloc(8)]);
    const { err } = await peer.command('VCPU_SET_XSAVE', { data: longer }, 0);
    assert.equal(err, dialect.name === 'v12' ? 0 : EINVAL, 'more than 4096 bytes');
    const shorter = await peer.command('VCPU_SET_XSAVE', { data: data.area.slice(0, 1024) }, 0);
    assert.equal(shorter.err, dialect.name === 'v12' ? EINVAL : 0, 'fewer than 4096 bytes');
    assert.equal((await peer.command('VCPU_SET_XSAVE', { data: data.area }, 0)).err, 0);
  }),
  hooked('70', 'VCPU_GET_MTRR_TYPE', { needs: ['pause', 'mtrr'] }, async ({ peer, guest }) => {
    const { err, size, data } = await peer.command('VCPU_GET_MTRR_TYPE', { gpa: guest.testPage.gpa }, 0);
    assert.equal(err, 0);
    assert.equal(size, 16);
    assert.ok([0, 1, 4, 5, 6].includes(data.type), `type ${data.type}`);
  }),
  hooked('75', 'VCPU_CONTROL_MSR: arguments', { dialects: NEWER, needs: ['pause', 'msr'] }, async (rig) => {
    const { peer } = rig;
    const control = async (msr: number, enable: number) =>
      (await peer.command('VCPU_CONTROL_MSR', { msr, enable }, 0)).err;
    assert.equal(await control(0x140, 2), EINVAL, 'enable 2');
    for (const msr of [0xffffffff, 0x2000, 0xbfffffff, 0xc0002000]) {
      assert.equal(await control(msr, 1), EINVAL, `MSR ${msr.toString(16)}`);
    }
    for (const msr of [0, 0x1fff, 0xc0000000, 0xc0001fff]) {
      assert.equal(await control(msr, 1), 0, `MSR ${msr.toString(16)}`);
      assert.equal(await control(msr, 0), 0);
    }
    const send = (change: (payload: Uint8Array) => Uint8Array) =>
      peer.commandBytes('VCPU_CONTROL_MSR', change, { msr: 0x140, enable: 1 }, 0);
    await expectPadding(rig, send, [9, 10]);
  }),
  hooked(
    '81',
    'VCPU_CONTROL_SINGLESTEP: arguments',
    { dialects: NEWER, needs: ['pause', 'singlestep'] },
    async (rig) => {
      const { peer, introspection } = rig;
      assert.equal((await peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 2 }, 0)).err, EINVAL);
      const send = (change: (payload: Uint8Array) => Uint8Array) =>
        peer.commandBytes('VCPU_CONTROL_SINGLESTEP', change, { enable: 1 }, 0);
      await expectPadding(rig, send, [9, 10, 15]);
      await introspection.event({ allow: 0, id: rig.eventId('SINGLESTEP') });
      const malformed = (await peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 2 }, 0)).err;
      assert.equal(malformed, rig.dialect.name === 'v9' ? EINVAL : EPERM, 'which check comes first');
      assert.equal((await peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 1 }, 0)).err, EPERM);
    },
  ),
  hooked('83, 84', 'VCPU_TRANSLATE_GVA', { needs: ['pause', 'registers'] }, async ({ peer, guest }) => {
    const { gpa, gva } = guest.testPage;
    const found = await peer.command('VCPU_TRANSLATE_GVA', { gva: gva + 0x123n }, 0);
    assert.equal(found.err, 0);
    assert.equal(found.data.gpa, gpa + 0x123);
    const none = await peer.command('VCPU_TRANSLATE_GVA', { gva: 0xffff_ffff_ffff_ffffn }, 0);
    assert.equal(none.err, 0);
    assert.equal(none.data.gpa, 2 ** 64, 'all-ones');
  }),
  hooked('76', 'VM_SET_PAGE_ACCESS', { needs: ['page-read', 'page-write', 'page-execute'] }, async (rig) => {
    const { peer, dialect, machine, guest } = rig;
    const set = async (entries: { gpa: number; access: number; visible?: number }[]) =>
      (
        await peer.command('VM_SET_PAGE_ACCESS', {
          view: 0,
          count: entries.length,
          entries: entries.map((entry) => ({ visible: 1, ...entry })),
        })
      ).err;
    const { gpa } = guest.testPage;
    assert.equal(await set([]), 0, 'no entry');
    assert.equal(await set([{ gpa, access: 0 }]), 0);
    assert.equal(await set([{ gpa: gpa + 77, access: 7 }]), 0, 'the low bits do not matter');
    assert.equal(await set([{ gpa, access: 8 }]), EINVAL, 'unknown bits');
    const highest = machine.memory.regions.at(-1)!;
    const nowhere = highest.gpa + highest.size + PAGE_SIZE;
    assert.equal(await set([{ gpa: nowhere, access: 7 }]), dialect.name === 'v7' ? 0 : EINVAL, 'no memory');
    if (dialect.name === 'v9')
      assert.equal(await set([{ gpa: nowhere, access: 7, visible: 0 }]), 0, 'not visible');
    assert.equal(
      await set([
        { gpa, access: 9 },
        { gpa, access: 7 },
      ]),
      EINVAL,
      'the first error is told',
    );
  }),
  hooked(
    'x',
    'vCPU commands wait for a vCPU that stands still',
    { needs: ['pause'], holds: true },
    async (rig) => {
      await rig.guest.hold!();
      const answer = rig.peer.command('VCPU_GET_INFO', {}, 0);
      assert.equal((await rig.peer.command('VM_GET_INFO', {})).err, 0, 'VM commands do not wait');
      await rig.guest.release!();
      assert.equal((await patiently(answer, 'the vCPU command')).err, 0);
    },
  ),
  hooked(
    'x',
    'libkvmi: the call order of its example',
    { dialects: ['v7'], needs: ['pause', 'registers'] },
    async (rig) => {
      const { peer, dialect } = rig;
      assert.equal((await peer.command('VM_GET_INFO', {})).err, 0);
      peer.send(encodeCommand(dialect, 'VM_CONTROL_CMD_RESPONSE', 1, { enable: 0, now: 1, flags: 0 }));
      peer.send(encodeCommand(dialect, 'VM_PAUSE_VCPU', 2, { wait: 1 }, 0));
      const on = await peer.command('VM_CONTROL_CMD_RESPONSE', { enable: 1, now: 1, flags: 0 });
      assert.equal(on.err, 0, 'the only reply of the batch');
      const event = await peer.event('PAUSE');
      assert.equal((await peer.command('VM_GET_MAX_GFN', {})).err, 0);
      for (const name of ['CR', 'MSR', 'PF', 'SINGLESTEP'] as const) await rig.enable(name);
      peer.reply(event, 'continue');
    },
  ),
];
