import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { codeOf, hooked } from '../../test/kit/hooked.ts';
import { kvmRegs, putRegister, STATE_SIZE, vcpuState } from '../abi/index.ts';
import { deferred } from '../awaitable.ts';
import type { KvmiError } from '../error.ts';
import { DIALECTS, type DialectName, type EventData, type EventName, HEADER_SIZE } from '../wire/index.ts';
import type { AnyEvent } from './index.ts';

const dialects: readonly DialectName[] = ['v7', 'v9', 'v12'];

const samples: { [N in EventName]: EventData[N] } = {
  UNHOOK: {},
  PAUSE: {},
  HYPERCALL: {},
  BREAKPOINT: { gpa: 0x1234, insn_len: 1 },
  CR: { cr: 4, old_value: 0x20n, new_value: 0x30n },
  TRAP: { nr: 14, error_code: 2, address: 0xfffn },
  XSETBV: { xcr: 0, old_value: 1n, new_value: 7n },
  DESCRIPTOR: { descriptor: 1, write: 1 },
  MSR: { msr: 0xc0000080, old_value: 0x500n, new_value: 0xd01n },
  PF: { gva: 0xffff_8000_0000_0000n, gpa: 0x5000, access: 2 },
  SINGLESTEP: { failed: 0 },
  CREATE_VCPU: {},
  CPUID: { function: 1, index: 0, insn_length: 2 },
  CMD_ERROR: { err: -22, msg_seq: 5, msg_id: 7 },
};

for (const dialect of dialects) {
  test(`${dialect}: an event that nobody cares about is answered harmlessly, at once`, async () => {
    const { host, errors } = await hooked({ dialect });
    for (const { name, actions } of DIALECTS[dialect].events) {
      if (actions.length === 0 || name === 'CPUID') continue;
      let answer: unknown;
      void host.event(name, 1, samples[name]).then((reply) => {
        answer = reply;
      });
      assert.equal(host.unanswered, 0, `${name} was not answered within the call`);
      await turn();
      const { action, data } = answer as { action: string; data: { new_val?: bigint } };
      assert.equal(action, 'continue', name);
      if (name === 'CR' || name === 'MSR') assert.equal(data.new_val, samples[name].new_value);
    }
    assert.deepEqual(errors, []);
  });

  test(`${dialect}: a handler gets name, vCPU and data, and its answer is sent within the call`, async () => {
    const { guest, host } = await hooked({ dialect });
    for (const { name, actions, data } of DIALECTS[dialect].events) {
      if (actions.length === 0) continue;
      const seen: unknown[] = [];
      const off = guest.on(name, (event) => {
        seen.push(event.name, event.vcpu.index, Object.keys(event.data).length);
        return 'continue';
      });
      void host.event(name, 1, samples[name]);
      assert.equal(host.unanswered, 0, name);
      off();
      const fields = data.fields.filter((field) => !field.type.padding).length;
      assert.deepEqual(seen, [name, 1, fields]);
    }
  });
}

test('a handler decides: a new value, an action, registers', async () => {
  const { guest, host } = await hooked();
  guest.on('CR', (event) => ({ newValue: event.data.old_value }));
  assert.deepEqual((await host.event('CR', 0, samples.CR)).data, { new_val: 0x20n });
  guest.on('MSR', () => ({ action: 'crash' }));
  assert.equal((await host.event('MSR', 0, samples.MSR)).action, 'crash');
  guest.on('PF', () => 'retry');
  assert.equal((await host.event('PF', 0, samples.PF)).action, 'retry');
  guest.on('BREAKPOINT', (event) => {
    const { registers } = event;
    registers.rip += BigInt(event.data.insn_len);
    registers.rax = -1n;
    return { action: 'retry', registers };
  });
  const state = new Uint8Array(STATE_SIZE);
  putRegister(state, 'rip', 0x1000n);
  putRegister(state, 'r15', 15n);
  const before = state.slice();
  assert.equal((await host.event('BREAKPOINT', 1, samples.BREAKPOINT, state)).action, 'retry');
  const [set] = host.got('VCPU_SET_REGISTERS');
  assert.equal(set!.vcpu, 1);
  const registers = kvmRegs.read(set!.body.regs, 0);
  assert.deepEqual([registers.rip, registers.rax, registers.r15], [0x1001n, 0xffff_ffff_ffff_ffffn, 15n]);
  assert.deepEqual(state, before, 'what the host sent was written to');
});

test('dialect v7: a PF answer can substitute what is read', async () => {
  const { guest, host } = await hooked({ dialect: 'v7' });
  guest.on('PF', () => ({ substitute: { gva: 0x77n, bytes: Uint8Array.of(1, 2, 3) }, repComplete: true }));
  const { action, data } = await host.event('PF', 0, samples.PF);
  assert.equal(action, 'continue');
  assert.deepEqual([data.ctx_addr, data.ctx_size, data.rep_complete], [0x77n, 3, 1]);
  assert.deepEqual(data.ctx_data!.slice(0, 4), Uint8Array.of(1, 2, 3, 0));
  guest.breakpoints.removeAll();
});

test('a handler may answer later, and use the vCPU meanwhile', async () => {
  const { guest, host } = await hooked();
  host.on('VCPU_GET_XCR', () => ({ value: 7n }));
  guest.on('HYPERCALL', async (event) => {
    assert.equal(await event.vcpu.xcr0(), 7n);
    await event.vcpu.setRegisters(event.registers);
    return { action: 'continue' };
  });
  const answer = host.event('HYPERCALL', 1, {});
  assert.equal(host.unanswered, 1);
  assert.equal((await answer).action, 'continue');
  assert.equal(host.got('VCPU_SET_REGISTERS')[0]!.vcpu, 1);
});

test('commands that a handler issues go out before its answer', async () => {
  const { guest, host } = await hooked();
  let atAnswer = 0;
  guest.on('PF', (event) => {
    guest.setPageAccess([{ gpa: event.data.gpa, access: 7 }]);
    event.vcpu.controlCr(3, true);
    event.vcpu.setRegisters(event.registers);
    return 'retry';
  });
  await host.event('PF', 0, samples.PF).then(() => {
    atAnswer = host.received
      .slice(-3)
      .filter(({ name }) => /PAGE_ACCESS|CONTROL_CR|SET_REG/.test(name)).length;
  });
  assert.equal(atAnswer, 3);
});

test('a handler that throws, rejects or answers nonsense is reported; the guest goes on', async () => {
  const { guest, host, errors } = await hooked();
  let how = 0;
  guest.on('CR', () => {
    how++;
    if (how === 1) throw new Error('first');
    if (how === 2) return Promise.reject(new Error('second'));
    if (how === 3) return 'retry' as 'continue';
    if (how === 4) return Promise.resolve({ action: 'nonsense' as 'continue' });
    throw 'a string';
  });
  for (let i = 1; i <= 5; i++) {
    const { action, data } = await host.event('CR', 0, samples.CR);
    assert.deepEqual([action, data.new_val], ['continue', 0x30n]);
    assert.equal(errors.length, i);
    assert.equal((errors[i - 1] as KvmiError).code, 'E_HANDLER');
  }
  assert.match(errors.map((error) => error.message).join(), /first.*second.*retry.*nonsense.*a string/);
});

test('one handler a name, until it is removed', async () => {
  const { guest, host } = await hooked();
  const off = guest.on('PF', () => 'retry');
  assert.throws(() => guest.on('PF', () => 'retry'), { code: 'E_BUSY' });
  off();
  off();
  assert.equal((await host.event('PF', 0, samples.PF)).action, 'continue');
  guest.on('PF', () => 'retry');
  off();
  assert.equal((await host.event('PF', 0, samples.PF)).action, 'retry');
});

test('a loop gets what has no handler, and answers it', async () => {
  const { guest, host } = await hooked();
  guest.on('MSR', () => ({ newValue: 1n }));
  const seen: string[] = [];
  const loop = (async () => {
    for await (const event of guest.events()) {
      seen.push(event.name);
      if (event.name === 'CR') event.reply('continue', { newValue: event.data.old_value });
      else if (event.name === 'PF') event.reply('retry');
      else event.reply();
      assert.equal(event.answered, true);
      assert.equal(event.reply('continue'), false, 'a second answer was sent');
    }
  })();
  const answers = await Promise.all([
    host.event('CR', 0, samples.CR),
    host.event('PF', 1, samples.PF),
    host.event('MSR', 1, samples.MSR),
    host.event('TRAP', 0, samples.TRAP),
  ]);
  assert.deepEqual(
    answers.map(({ action, data }) => [action, data.new_val]),
    [
      ['continue', 0x20n],
      ['retry', undefined],
      ['continue', 1n],
      ['continue', undefined],
    ],
  );
  assert.deepEqual(seen, ['CR', 'PF', 'TRAP']);
  host.channel.shutdown();
  await loop;
  assert.deepEqual(host.strayReplies, []);
});

test('leaving the loop answers what is still open; another loop may follow', async () => {
  const { guest, host } = await hooked();
  const answers = [host.event('CR', 0, samples.CR), host.event('CR', 1, samples.CR)];
  assert.equal(host.unanswered, 0, 'without a loop events are answered at once');
  await Promise.all(answers);

  const events = guest.events();
  assert.throws(() => guest.events(), { code: 'E_BUSY' });
  const first = host.event('CR', 0, samples.CR);
  const second = host.event('PF', 1, samples.PF);
  let taken: AnyEvent | undefined;
  for await (const event of events) {
    taken = event;
    break;
  }
  assert.deepEqual((await first).data.new_val, 0x30n);
  assert.equal((await second).action, 'continue');
  assert.equal(taken!.reply(), false);
  const again = guest.events();
  await again.return!();
});

test('an event that comes in pieces keeps its registers', async () => {
  const { guest, host } = await hooked();
  const kept: AnyEvent[] = [];
  guest.on('PF', (event) => {
    kept.push(event);
    return 'retry';
  });
  for (let i = 1; i <= 3; i++) {
    const state = new Uint8Array(STATE_SIZE);
    putRegister(state, 'rip', BigInt(i));
    const { bytes } = host.message('PF', 0, samples.PF, state);
    for (let at = 0; at < bytes.length; at += 100) host.channel.write(bytes.slice(at, at + 100));
  }
  assert.deepEqual(
    kept.map((event) => event.registers.rip),
    [1n, 2n, 3n],
  );
});

test('registers of an event: every register, segment, table and MSR', async () => {
  const { guest, host } = await hooked();
  const state = Uint8Array.from({ length: STATE_SIZE }, (_, i) => (i * 37 + 11) & 0xff);
  state[0] = 8;
  const expected = vcpuState.read(state, 0);
  guest.on('HYPERCALL', ({ registers }) => {
    for (const [name, value] of Object.entries(expected.regs)) {
      assert.equal(registers[name as 'rax'], value, name);
    }
    const { interrupt_bitmap: _, ...rest } = expected.sregs;
    for (const [name, value] of Object.entries(rest)) {
      assert.deepEqual(registers[name as 'cr3'], value, name);
    }
    assert.equal(registers.mode, 8);
    assert.equal(registers.msr(0xc0000082), expected.msrs.lstar);
    assert.equal(registers.msr(0xc0000102), expected.msrs.shadow_gs);
    assert.equal(registers.msr(0x10), undefined);
    registers.r9 = 1n;
    assert.equal(registers.changed, true);
    assert.equal(registers.r8, expected.regs.r8);
  });
  assert.equal((await host.event('HYPERCALL', 0, {}, state)).action, 'continue');
});

test('registers that were asked for come with their MSRs', async () => {
  const { guest, host } = await hooked();
  host.on('VCPU_GET_REGISTERS', ({ body }) => ({
    mode: 8,
    regs: Uint8Array.from({ length: 144 }, (_, i) => i),
    sregs: new Uint8Array(312).fill(3),
    nmsrs: body.nmsrs,
    msrs: body.msrs_idx.map((index) => ({ index, reserved: 0, data: BigInt(index) * 2n })),
  }));
  const registers = await guest.vcpus[1]!.registers([0x10, 0xc0000100]);
  assert.equal(registers.rbx, 0x0f0e0d0c0b0a0908n);
  assert.equal(registers.cr3, 0x0303030303030303n);
  assert.equal(registers.msr(0xc0000100), 0x180000200n);
  assert.equal(registers.msr(0x11), undefined);
  assert.equal((await guest.vcpus[0]!.registers()).msr(0x10), undefined);
});

test('CPUID events without an answer are carried out', async () => {
  const { host } = await hooked({ dialect: 'v7' });
  host.on('VCPU_GET_CPUID', ({ body }) =>
    body.function === 1 ? { eax: 0xffffffff, ebx: 2, ecx: 3, edx: 4 } : 2,
  );
  const state = new Uint8Array(STATE_SIZE);
  putRegister(state, 'rip', 0x1000n);
  putRegister(state, 'rax', 1n);
  assert.equal((await host.event('CPUID', 1, samples.CPUID, state)).action, 'continue');
  await host.event('CPUID', 1, { ...samples.CPUID, function: 9 }, state);
  const set = host
    .got('VCPU_SET_REGISTERS')
    .map(({ body }) => kvmRegs.read(body.regs, 0))
    .map(({ rip, rax, rdx }) => [rip, rax, rdx]);
  assert.deepEqual(set, [
    [0x1002n, 0xffffffffn, 4n],
    [0x1002n, 0n, 0n],
  ]);
});

test('events that need no answer get none', async () => {
  const { guest, host } = await hooked({ dialect: 'v7' });
  const seen: unknown[] = [];
  guest.on('CMD_ERROR', (event) => {
    seen.push(event.data, event.needsAnswer, event.reply());
  });
  host.channel.write(host.message('CMD_ERROR', 1, samples.CMD_ERROR).bytes);
  await turn();
  assert.deepEqual(seen, [samples.CMD_ERROR, false, false]);
  assert.deepEqual(host.strayReplies, []);
});

for (const dialect of dialects) {
  test(`${dialect}: an event that the dialect does not know is let go on, and reported`, async () => {
    const { host, errors } = await hooked({ dialect });
    const { bytes, seq } = host.message('PAUSE', 1, {});
    if (dialect === 'v12') bytes[HEADER_SIZE] = 99;
    else bytes[HEADER_SIZE + 4] = 99;
    host.channel.write(bytes);
    assert.deepEqual(host.strayReplies, [{ seq, vcpu: 1, action: 0 }]);
    assert.match(errors[0]!.message, /event 99 is not known/);
  });

  test(`${dialect}: a malformed event ends the connection`, async () => {
    const { guest, host } = await hooked({ dialect });
    const { bytes } = host.message('PAUSE', 0, {});
    const common = HEADER_SIZE + DIALECTS[dialect].eventHeaderSize;
    bytes[common] = 0xff;
    bytes[common + 1] = 0xff;
    host.channel.write(bytes);
    assert.equal(((await guest.closed) as KvmiError).code, 'E_PROTOCOL');
  });
}

test('v12: an error block with the id of an event is a refused answer', async () => {
  const { guest, host, errors } = await hooked();
  const refusal = Uint8Array.of(1, 0, 8, 0, 9, 0, 0, 0, 0xea, 0xff, 0xff, 0xff, 0, 0, 0, 0);
  host.channel.write(refusal);
  assert.match(errors[0]!.message, /seq 9 was refused: error 22/);
  assert.equal(guest.connection.ended, false);
  host.channel.write(Uint8Array.of(1, 0, 4, 0, 9, 0, 0, 0, 0, 0, 0, 0));
  assert.ok(guest.connection.ended);
});

test('an event of a vCPU that was not counted is answered, too', async () => {
  const { guest, host } = await hooked({ vcpus: 1 });
  assert.equal((await host.event('HYPERCALL', 5, {})).action, 'continue');
  assert.equal(guest.vcpus.length, 6);
});

test('a number of vCPUs that nobody has ends the connection', async () => {
  const { guest, host } = await hooked();
  host.channel.write(host.message('HYPERCALL', 4096, {}).bytes);
  assert.equal(((await guest.closed) as KvmiError).code, 'E_PROTOCOL');
  const many = hooked({ prepare: (peer) => peer.on('VM_GET_INFO', () => ({ vcpu_count: 0xffffffff })) });
  assert.equal(await codeOf(many), 'E_PROTOCOL');
});

test('a flood of events is answered one by one, without growing', async () => {
  const { guest, host } = await hooked();
  let count = 0;
  guest.on('MSR', () => {
    count++;
  });
  const { bytes } = host.message('MSR', 1, samples.MSR);
  for (let i = 0; i < 100_000; i++) host.channel.write(bytes);
  assert.equal(count, 100_000);
  assert.equal(host.strayReplies.length, 100_000);
});

test('the connection may close at any point of a handler', async () => {
  const { guest, host, errors } = await hooked();
  const gate = deferred<void>();
  guest.on('CR', async () => {
    await gate.promise;
    return { action: 'continue' };
  });
  void host.event('CR', 0, samples.CR);
  host.channel.shutdown();
  await guest.closed;
  gate.resolve();
  await turn();
  assert.deepEqual(errors, []);
});
