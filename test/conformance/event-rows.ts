import assert from 'node:assert/strict';
import { putRegister, STATE_SIZE } from '../../src/abi/state.ts';
import { ACCESS, PAGE_SIZE } from '../../src/machine/index.ts';
import type { ReceivedEvent } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import { EBUSY, EPERM, hooked, type Rig, type Row } from './rig.ts';
import { getRegister } from './state.ts';

const OTHERS = ['v9', 'v12'] as const;
/** All-ones: a driver may not know it. */
const UNKNOWN_GVA = 2n ** 64n - 1n;
const PF_REPLY = { ctx_addr: 0n, ctx_size: 0, rep_complete: 0, ctx_data: new Uint8Array(0) };

/** kvm_regs of an event, changed. */
function changedRegs(event: ReceivedEvent, change: (state: Uint8Array) => void): Uint8Array {
  const state = new Uint8Array(STATE_SIZE);
  state.set(event.state);
  change(state);
  return state.slice(8, 152);
}

/** SET_REGISTERS that moves rip on by the length of the instruction. */
async function skip(rig: Rig, event: ReceivedEvent, length: number): Promise<void> {
  const regs = changedRegs(event, (state) =>
    putRegister(state, 'rip', getRegister(state, 'rip') + BigInt(length)),
  );
  assert.equal((await rig.peer.command('VCPU_SET_REGISTERS', { regs }, event.vcpu)).err, 0, 'SET_REGISTERS');
}

/** Sets the access of the test page. */
async function access(rig: Rig, bits: number): Promise<void> {
  const entries = [{ gpa: rig.guest.testPage.gpa, access: bits, visible: 1 }];
  const { err } = await rig.peer.command('VM_SET_PAGE_ACCESS', { view: 0, count: 1, entries });
  assert.equal(err, 0, `access ${bits}`);
}

async function selectCr(rig: Rig, cr: number, enable: number): Promise<void> {
  assert.equal((await rig.peer.command('VCPU_CONTROL_CR', { cr, enable }, 0)).err, 0, `CR${cr} ${enable}`);
}

async function selectMsr(rig: Rig, enable: number): Promise<void> {
  const { msr } = rig.guest;
  assert.ok(msr !== undefined, 'a guest that can write an MSR says which');
  assert.equal((await rig.peer.command('VCPU_CONTROL_MSR', { msr, enable }, 0)).err, 0, `MSR ${enable}`);
}

/** Reads the test page's first byte. */
async function testByte(rig: Rig): Promise<number> {
  const { data } = await rig.peer.command('VM_READ_PHYSICAL', { gpa: rig.guest.testPage.gpa, size: 1 });
  return data.data[0]!;
}

const INTERCEPTED: readonly Row[] = [
  hooked('52', 'HYPERCALL', { needs: ['hypercall'], actions: ['vmcall', 'vmcall-other'] }, async (rig) => {
    await rig.enable('HYPERCALL');
    const done = rig.guest.act('vmcall');
    const event = await rig.peer.event('HYPERCALL');
    assert.equal(event.size, rig.eventSize(0));
    rig.peer.reply(event, 'continue');
    assert.equal(BigInt.asIntN(64, await done), 0n, 'the call returns 0');
    assert.notEqual(BigInt.asIntN(64, await rig.guest.act('vmcall-other')), 0n, 'other calls are not ours');
    await rig.enable('HYPERCALL', 0);
    assert.equal(BigInt.asIntN(64, await rig.guest.act('vmcall')), -1000n, 'disabled: KVM_ENOSYS');
  }),
  hooked(
    '53, 54',
    'BREAKPOINT',
    { needs: ['breakpoint', 'set-registers'], actions: ['int3'] },
    async (rig) => {
      await rig.enable('BREAKPOINT');
      const done = rig.guest.act('int3');
      const event = await rig.peer.event('BREAKPOINT');
      assert.equal(event.size, rig.eventSize(16));
      assert.equal(event.data.insn_len, 1);
      const { data } = await rig.peer.command('VM_READ_PHYSICAL', { gpa: event.data.gpa, size: 1 });
      assert.equal(data.data[0], 0xcc, 'gpa is that of the int3');
      await skip(rig, event, event.data.insn_len);
      rig.peer.reply(event, 'retry');
      await patiently(done, 'the guest to go on behind the int3');
      await rig.enable('BREAKPOINT', 0);
    },
  ),
  hooked('x', 'a second enable of BREAKPOINT is refused', { needs: ['breakpoint'] }, async (rig) => {
    const event_id = rig.eventId('BREAKPOINT');
    await rig.enable('BREAKPOINT');
    const again = await rig.peer.command('VCPU_CONTROL_EVENTS', { event_id, enable: 1 }, 0);
    assert.equal(again.err, rig.dialect.name === 'v7' ? -95 : EBUSY);
    await rig.enable('BREAKPOINT', 0);
    const off = await rig.peer.command('VCPU_CONTROL_EVENTS', { event_id, enable: 0 }, 0);
    assert.equal(off.err, rig.dialect.name === 'v7' ? -95 : EBUSY, 'disabling what is not held');
  }),
  hooked('57-59', 'CR', { needs: ['cr'], actions: ['cr4'] }, async (rig) => {
    await rig.enable('CR');
    await selectCr(rig, 4, 1);
    const done = rig.guest.act('cr4');
    const event = await rig.peer.event('CR');
    assert.equal(event.size, rig.eventSize(24));
    assert.equal(event.data.cr, 4);
    assert.notEqual(event.data.old_value, event.data.new_value);
    assert.equal(getRegister(event.state, 'cr4'), event.data.old_value, 'the write has not happened yet');
    rig.peer.reply(event, 'continue', { new_val: event.data.old_value });
    assert.equal(await done, event.data.old_value, 'the guest reads back what the tool wrote');
    await selectCr(rig, 4, 0);
    await rig.guest.act('cr4');
    assert.deepEqual(rig.peer.pendingEvents, [], 'not selected: no event');
    await rig.enable('CR', 0);
  }),
  hooked('65', 'XSETBV', { needs: ['xsetbv'], actions: ['xsetbv'] }, async (rig) => {
    await rig.enable('XSETBV');
    const done = rig.guest.act('xsetbv');
    const event = await rig.peer.event('XSETBV');
    assert.equal(event.size, rig.eventSize(rig.dialect.name === 'v7' ? 0 : 24));
    if (rig.dialect.name !== 'v7') {
      const { data } = await rig.peer.command('VCPU_GET_XCR', { xcr: 0 }, 0);
      assert.equal(data.value, event.data.new_value, 'the new value is in effect');
      assert.notEqual(event.data.old_value, event.data.new_value);
    }
    rig.peer.reply(event, 'continue');
    await done;
    await rig.enable('XSETBV', 0);
  }),
  hooked('71, 72', 'DESCRIPTOR', { needs: ['descriptor'], actions: ['sgdt', 'lgdt'] }, async (rig) => {
    await rig.enable('DESCRIPTOR');
    for (const [action, write] of [
      ['sgdt', 0],
      ['lgdt', 1],
    ] as const) {
      const done = rig.guest.act(action);
      const event = await rig.peer.event('DESCRIPTOR');
      assert.equal(event.size, rig.eventSize(8));
      assert.equal(event.data.descriptor, 2, 'GDTR');
      assert.equal(event.data.write, write);
      rig.peer.reply(event, 'continue');
      await patiently(done, action);
    }
    await rig.enable('DESCRIPTOR', 0);
  }),
  hooked('73, 74', 'MSR', { needs: ['msr'], actions: ['msr'] }, async (rig) => {
    await rig.enable('MSR');
    await selectMsr(rig, 1);
    const done = rig.guest.act('msr');
    const event = await rig.peer.event('MSR');
    assert.equal(event.size, rig.eventSize(24));
    assert.equal(event.data.msr, rig.guest.msr);
    rig.peer.reply(event, 'continue', { new_val: event.data.old_value });
    assert.equal(await done, event.data.old_value, 'the guest reads back what the tool wrote');
    await selectMsr(rig, 0);
    await rig.enable('MSR', 0);
  }),
  hooked('x', 'CONTINUE without a new value writes 0', { needs: ['msr'], actions: ['msr'] }, async (rig) => {
    await rig.enable('MSR');
    await selectMsr(rig, 1);
    const done = rig.guest.act('msr');
    const event = await rig.peer.event('MSR');
    const reply = new Uint8Array(24);
    reply[0] = rig.dialect.messages.eventReply;
    reply[2] = 16;
    new DataView(reply.buffer).setUint32(4, event.seq, true);
    rig.peer.send(reply);
    assert.equal(await done, 0n);
    await selectMsr(rig, 0);
    await rig.enable('MSR', 0);
  }),
  hooked(
    '77, 78',
    'PF: a write that the page does not allow',
    { needs: ['page-write'], actions: ['write-page'], beforeWrite: true },
    async (rig) => {
      const { gpa, gva } = rig.guest.testPage;
      const size = 1;
      await rig.peer.command('VM_WRITE_PHYSICAL', { gpa, size, data: Uint8Array.of(0) });
      await rig.enable('PF');
      await access(rig, ACCESS.read | ACCESS.execute);
      const done = rig.guest.act('write-page');
      const event = await rig.peer.event('PF');
      assert.equal(event.size, rig.eventSize(24));
      assert.equal(event.data.gpa - (event.data.gpa % PAGE_SIZE), gpa);
      if (event.data.gva !== UNKNOWN_GVA) assert.equal(event.data.gva & ~0xfffn, gva);
      assert.equal(event.data.access & 2, 2, 'a write');
      assert.equal(await testByte(rig), 0, 'the write has not happened');
      await access(rig, ACCESS.all);
      rig.peer.reply(event, 'retry', rig.dialect.name === 'v7' ? PF_REPLY : {});
      await patiently(done, 'the write');
      assert.notEqual(await testByte(rig), 0, 'the write happened after the retry');
      await rig.enable('PF', 0);
    },
  ),
  hooked(
    'x',
    'PF: RETRY with rip moved on leaves the access out',
    { needs: ['page-write', 'set-registers'], actions: ['write-page'], beforeWrite: true },
    async (rig) => {
      await rig.peer.command('VM_WRITE_PHYSICAL', {
        gpa: rig.guest.testPage.gpa,
        size: 1,
        data: Uint8Array.of(0),
      });
      await rig.enable('PF');
      await access(rig, ACCESS.read | ACCESS.execute);
      const done = rig.guest.act('write-page');
      const event = await rig.peer.event('PF');
      await skip(rig, event, rig.guest.writeLength!);
      rig.peer.reply(event, 'retry', rig.dialect.name === 'v7' ? PF_REPLY : {});
      await patiently(done, 'the guest to go on behind the write');
      assert.equal(await testByte(rig), 0, 'nothing was written');
      await access(rig, 7);
      await rig.enable('PF', 0);
    },
  ),
  hooked(
    'x',
    'PF: CONTINUE lets the access through once',
    { needs: ['page-write'], actions: ['write-page'] },
    async (rig) => {
      await rig.enable('PF');
      await access(rig, ACCESS.read | ACCESS.execute);
      for (let i = 0; i < 2; i++) {
        const done = rig.guest.act('write-page');
        rig.peer.reply(await rig.peer.event('PF'), 'continue', rig.dialect.name === 'v7' ? PF_REPLY : {});
        await patiently(done, 'the write');
      }
      await access(rig, 7);
      await rig.enable('PF', 0);
    },
  ),
  hooked(
    'x',
    'PF: reads and fetches',
    { needs: ['page-read', 'page-write', 'page-execute'], actions: ['read-page', 'execute-page'] },
    async (rig) => {
      await rig.enable('PF');
      for (const [action, allowed, bit] of [
        ['read-page', 0, 1],
        ['execute-page', 3, 4],
      ] as const) {
        await access(rig, allowed);
        const done = rig.guest.act(action);
        const event = await rig.peer.event('PF');
        assert.equal(event.data.access & bit, bit, action);
        await access(rig, 7);
        rig.peer.reply(event, 'retry', rig.dialect.name === 'v7' ? PF_REPLY : {});
        await patiently(done, action);
      }
      await rig.enable('PF', 0);
    },
  ),
  hooked(
    'x',
    'PF not enabled: a restricted access is carried out',
    { needs: ['page-write'], actions: ['write-page'] },
    async (rig) => {
      await access(rig, ACCESS.read | ACCESS.execute);
      await patiently(rig.guest.act('write-page'), 'the write');
      assert.deepEqual(rig.peer.pendingEvents, []);
      await access(rig, 7);
    },
  ),
  hooked(
    'x',
    'PF: the tool hides memory from a read',
    { dialects: ['v7'], needs: ['page-read', 'page-write', 'page-execute'], actions: ['read-page'] },
    async (rig) => {
      const { gpa, gva } = rig.guest.testPage;
      await rig.peer.command('VM_WRITE_PHYSICAL', { gpa, size: 8, data: new Uint8Array(8).fill(0x11) });
      await rig.enable('PF');
      await access(rig, 0);
      const done = rig.guest.act('read-page');
      const event = await rig.peer.event('PF');
      const data = { ...PF_REPLY, ctx_addr: gva, ctx_size: 8, ctx_data: new Uint8Array(8).fill(0x77) };
      rig.peer.reply(event, 'continue', data);
      assert.equal((await done) & 0xffn, 0x77n, 'the guest reads what the tool says');
      await access(rig, 7);
      await rig.enable('PF', 0);
    },
  ),
  hooked('79, 80', 'SINGLESTEP', { needs: ['singlestep'] }, async (rig) => {
    await rig.enable('SINGLESTEP');
    assert.equal((await rig.peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 1 }, 0)).err, 0);
    for (let i = 0; i < 3; i++) {
      const event = await rig.peer.event('SINGLESTEP');
      assert.equal(event.size, rig.eventSize(8));
      assert.equal(event.data.failed, 0);
      if (i === 2) assert.equal((await rig.peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 0 }, 0)).err, 0);
      rig.peer.reply(event, 'continue');
    }
    await rig.enable('SINGLESTEP', 0);
    assert.equal((await rig.peer.command('VCPU_GET_INFO', {}, 0)).err, 0, 'the vCPU goes on');
    assert.deepEqual(rig.peer.pendingEvents, []);
  }),
  hooked('x', 'CPUID', { dialects: ['v7'], needs: ['cpuid-event'], actions: ['cpuid'] }, async (rig) => {
    await rig.enable('CPUID');
    const done = rig.guest.act('cpuid');
    const event = await rig.peer.event('CPUID');
    assert.equal(event.size, 560);
    assert.equal(event.data.insn_length, 2);
    const regs = changedRegs(event, (state) => {
      putRegister(state, 'rax', 0x1234n);
      putRegister(state, 'rip', getRegister(state, 'rip') + 2n);
    });
    assert.equal((await rig.peer.command('VCPU_SET_REGISTERS', { regs }, 0)).err, 0);
    rig.peer.reply(event, 'continue');
    assert.equal((await done) & 0xffffn, 0x1234n, 'the guest sees what the tool says');
    await rig.enable('CPUID', 0);
  }),
];

const INJECTION: readonly Row[] = [
  hooked('61', 'INJECT_EXCEPTION needs TRAP', { dialects: OTHERS, needs: ['inject'] }, async (rig) => {
    await rig.introspection.event({ allow: 0, id: rig.eventId('TRAP') });
    const body = { nr: 6, error_code: 0, address: 0n };
    assert.equal((await rig.peer.command('VCPU_INJECT_EXCEPTION', body, 0)).err, EPERM);
  }),
  hooked(
    '62',
    'INJECT_EXCEPTION: the TRAP event tells what was injected',
    { needs: ['inject'], actions: ['noop', 'take-exception'] },
    async (rig) => {
      const body = { nr: 3, error_code: 0, address: 0n };
      assert.equal((await rig.peer.command('VCPU_INJECT_EXCEPTION', body, 0)).err, 0);
      const event = await rig.peer.event('TRAP');
      assert.equal(event.size, rig.eventSize(16));
      assert.equal(event.data.nr, 3);
      const second = await rig.peer.command('VCPU_INJECT_EXCEPTION', body, 0);
      assert.equal(second.err, 0, 'the TRAP event was sent: the next injection may come');
      rig.peer.reply(event, 'continue');
      rig.peer.reply(await rig.peer.event('TRAP'), 'continue');
      await patiently(rig.guest.act('noop'), 'the guest to live on');
    },
  ),
  hooked(
    '63',
    'a #BP that is re-injected wins over an injection',
    { needs: ['inject', 'breakpoint', 'set-registers'], actions: ['int3'] },
    async (rig) => {
      await rig.enable('BREAKPOINT');
      const done = rig.guest.act('int3');
      const event = await rig.peer.event('BREAKPOINT');
      const body = { nr: 6, error_code: 0, address: 0n };
      assert.equal((await rig.peer.command('VCPU_INJECT_EXCEPTION', body, 0)).err, 0);
      assert.equal((await rig.peer.command('VCPU_INJECT_EXCEPTION', body, 0)).err, EBUSY, 'one at a time');
      rig.peer.reply(event, 'continue');
      const trap = await rig.peer.event('TRAP');
      assert.equal(trap.data.nr, 3, 'the breakpoint');
      rig.peer.reply(trap, 'continue');
      await patiently(done, 'the guest to handle #BP');
      await rig.enable('BREAKPOINT', 0);
    },
  ),
];

/** Events of a vCPU and what the tool may answer. */
export const EVENT_ROWS: readonly Row[] = [...INTERCEPTED, ...INJECTION];
