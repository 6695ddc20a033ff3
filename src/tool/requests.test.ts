import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { codeOf, hooked } from '../../test/kit/hooked.ts';
import { ScriptedHost } from '../../test/kit/scripted-host.ts';
import { KvmiError } from '../error.ts';
import { connect, listen } from '../transport/index.ts';
import { encodeErrorReply, encodeReply, HEADER_SIZE, putHeader, ReplyError } from '../wire/index.ts';
import { connectGuest } from './connect.ts';

test('replies may come in any order', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(fc.nat({ max: 19 }), { minLength: 20, maxLength: 20 }), async (order) => {
      const { guest, host } = await hooked();
      host.on('VCPU_GET_MTRR_TYPE', () => undefined);
      const answers = order.map((_, i) => guest.vcpus[0]!.mtrrType(i * 4096));
      const commands = host.got('VCPU_GET_MTRR_TYPE');
      const definition = host.dialect.command('VCPU_GET_MTRR_TYPE')!;
      for (const i of order) {
        const { seq, body } = commands[i]!;
        host.channel.write(encodeReply(definition, seq, { type: body.gpa / 4096 }));
      }
      assert.deepEqual(
        await Promise.all(answers),
        order.map((_, i) => i),
      );
    }),
    { numRuns: 20 },
  );
});

test('an error reply rejects with its number and name, and only that command', async () => {
  const { guest, host } = await hooked();
  host.on('VCPU_GET_XCR', () => 22).on('VCPU_GET_INFO', () => ({ tsc_speed: 5n }));
  await assert.rejects(
    guest.vcpus[1]!.xcr0(),
    (error) => error instanceof ReplyError && error.errno === 22 && error.errnoName === 'KVM_EINVAL',
  );
  assert.deepEqual(await guest.vcpus[0]!.info(), { tscHz: 5n });
});

test('a command that gets no reply times out by itself, naming the command and the vCPU', async () => {
  const { guest, host, errors } = await hooked({ requestTimeout: 40 });
  host.on('VCPU_GET_XCR', () => undefined);
  const lost = guest.vcpus[1]!.xcr0();
  const [seq] = host.got('VCPU_GET_XCR').map((command) => command.seq);
  await assert.rejects(
    lost,
    (error: unknown) =>
      error instanceof KvmiError &&
      error.code === 'E_TIMEOUT' &&
      /VCPU_GET_XCR for vCPU 1/.test(error.message) &&
      error.hint !== undefined,
  );
  host.channel.write(encodeReply(host.dialect.command('VCPU_GET_XCR')!, seq!, { value: 1n }));
  host.on('VCPU_GET_XCR', () => ({ value: 2n }));
  assert.equal(await guest.vcpus[1]!.xcr0(), 2n);
  assert.deepEqual(errors, [], 'the late reply is no error');
});

test('time-outs are counted for each command from when it was sent', async () => {
  const { guest, host } = await hooked({ requestTimeout: 60 });
  host.on('VCPU_GET_XCR', () => undefined);
  const times: number[] = [];
  const start = performance.now();
  const note = () => times.push(performance.now() - start);
  const first = guest.vcpus[0]!.xcr0().catch(note);
  await new Promise((resolve) => setTimeout(resolve, 30));
  const second = guest.vcpus[0]!.xcr0().catch(note);
  await Promise.all([first, second]);
  assert.ok(times[0]! >= 55 && times[1]! >= 85, `timed out after ${times}`);
});

test('a hang-up rejects everything outstanding, and everything after it', async () => {
  const { guest, host } = await hooked();
  host.on('VCPU_GET_XCR', () => undefined).on('VM_READ_PHYSICAL', () => undefined);
  const outstanding = [
    guest.vcpus[0]!.xcr0(),
    guest.memory.readBytes(0, 3 * 4096),
    guest.vcpus[1]!.memory.readBytes(0n, 1),
    guest.command('VCPU_GET_XCR', { xcr: 0 }, 1),
  ].map(codeOf);
  host.channel.shutdown();
  assert.deepEqual(await Promise.all(outstanding.slice(0, 2)), ['E_CLOSED', 'E_CLOSED']);
  assert.equal(await outstanding[3], 'E_CLOSED');
  assert.equal(await guest.closed, undefined);
  assert.equal(await codeOf(guest.vcpus[0]!.registers()), 'E_CLOSED');
  assert.equal(await codeOf(guest.memory.readBytes(0, 8)), 'E_CLOSED');
  assert.equal(await codeOf(guest.breakpoints.set(1n, () => {})), 'E_CLOSED');
  await guest.detach();
});

test('a message that answers nothing is reported and dropped', async () => {
  const { guest, host, errors } = await hooked();
  host.channel.write(encodeErrorReply(2, 77_777, 0));
  assert.match(errors[0]!.message, /77777 answers nothing/);
  host.on('VCPU_GET_XCR', () => ({ value: 1n }));
  assert.equal(await guest.vcpus[0]!.xcr0(), 1n);
});

test('a reply with the id of another command fails the command', async () => {
  const { guest, host } = await hooked();
  host.on('VCPU_GET_XCR', ({ seq }) => {
    host.channel.write(encodeErrorReply(2, seq, 0));
    return undefined;
  });
  assert.equal(await codeOf(guest.vcpus[0]!.xcr0()), 'E_PROTOCOL');
});

test('short replies are refused where bytes would be missing, and zero-extended where fields would', async () => {
  const { guest, host } = await hooked();
  const reply = (id: number, seq: number, data: number[]) => {
    const message = new Uint8Array(HEADER_SIZE + data.length);
    putHeader(message, 0, id, data.length, seq);
    message.set(data, HEADER_SIZE);
    host.channel.write(message);
    return undefined;
  };
  host.on('VCPU_GET_REGISTERS', ({ id, seq }) => reply(id, seq, new Array(200).fill(0)));
  host.on('VM_READ_PHYSICAL', ({ id, seq }) => reply(id, seq, new Array(10).fill(0)));
  host.on('VCPU_GET_XCR', ({ id, seq }) => reply(id, seq, [0, 0, 0, 0]));
  host.on('VCPU_GET_MTRR_TYPE', ({ id, seq }) => reply(id, seq, new Array(8).fill(0)));
  assert.equal(await codeOf(guest.vcpus[0]!.registers()), 'E_PROTOCOL');
  assert.equal(await codeOf(guest.memory.readBytes(0, 8)), 'E_PROTOCOL');
  assert.equal(await codeOf(guest.vcpus[0]!.xcr0()), 'E_PROTOCOL');
  assert.equal(await guest.vcpus[0]!.mtrrType(0), 0);
});

test('a message that is larger than the protocol allows ends the connection', async () => {
  const { guest, host } = await hooked();
  const message = new Uint8Array(HEADER_SIZE);
  putHeader(message, 0, 2, 8185, 1);
  host.on('VCPU_GET_XCR', () => undefined);
  const outstanding = codeOf(guest.vcpus[0]!.xcr0());
  host.channel.write(message);
  assert.equal(await outstanding, 'E_CLOSED');
  assert.match((await guest.closed)!.message, /8185 bytes/);
});

test('a command that the dialect does not have says so', async () => {
  const { guest } = await hooked({ dialect: 'v12' });
  assert.equal(await codeOf(guest.maxGfn()), 'E_NOT_IN_DIALECT');
  assert.equal(await codeOf(guest.views.create()), 'E_NOT_IN_DIALECT');
  assert.equal(await codeOf(guest.enable('CPUID')), 'E_NOT_IN_DIALECT');
  assert.equal(await codeOf(guest.vcpus[0]!.controlEvents('CPUID', true)), 'E_NOT_IN_DIALECT');
});

test('typed commands send what the protocol says', async () => {
  const { guest, host } = await hooked({ dialect: 'v7' });
  host.on('VCPU_GET_CPUID', ({ body }) => (body.function > 7 ? 2 : { eax: 1, ebx: 2, ecx: 3, edx: 4 }));
  host.on('VCPU_TRANSLATE_GVA', ({ body }) => ({ gpa: body.gva === 0x1234n ? 0x5234 : 2 ** 64 }));
  host.on('VM_CREATE_EPT_VIEW', () => ({ view: 3 }));
  host.on('VCPU_GET_XSAVE', () => ({ area: new Uint8Array(4096).fill(7) }));
  const vcpu = guest.vcpus[1]!;
  assert.deepEqual(await vcpu.cpuid(7), { eax: 1, ebx: 2, ecx: 3, edx: 4 });
  assert.equal(await vcpu.cpuid(8), undefined);
  assert.equal(await vcpu.translate(0x1234n), 0x5234);
  assert.equal(await vcpu.translate(-1n), undefined);
  assert.equal(await guest.views.create(), 3);
  assert.deepEqual(await vcpu.xsave(), new Uint8Array(4096).fill(7));
  assert.equal(await codeOf(vcpu.setXsave(new Uint8Array(100))), 'E_ARGUMENT');
  await vcpu.inject({ vector: 14, errorCode: 2, address: 0x1000n });
  await vcpu.controlCr(3, true);
  await vcpu.controlMsr(0xc0000082, true);
  await guest.setPageAccess([{ gpa: 0x1000, access: 5 }], 3);
  const sent = host.received.slice(-4).map(({ name, vcpu: index, body }) => ({ name, index, body }));
  assert.deepEqual(sent.slice(0, 3), [
    { name: 'VCPU_INJECT_EXCEPTION', index: 1, body: { nr: 14, error_code: 2, address: 0x1000n } },
    { name: 'VCPU_CONTROL_CR', index: 1, body: { cr: 3, enable: 1 } },
    { name: 'VCPU_CONTROL_MSR', index: 1, body: { msr: 0xc0000082, enable: 1 } },
  ]);
  const { body } = host.got('VM_SET_PAGE_ACCESS')[0]!;
  assert.deepEqual([body.view, body.count], [3, 1]);
  assert.deepEqual([body.entries[0]!.gpa, body.entries[0]!.access], [0x1000, 5]);
});

test('what is issued in one turn goes out together', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-batch-'));
  const hosts: ScriptedHost[] = [];
  const listener = await listen(`unix:${directory}/s`, (channel) => {
    hosts.push(new ScriptedHost(channel).open());
  });
  const channel = await connect(`unix:${directory}/s`);
  const hello = { name: '', uuid: new Uint8Array(16), startTime: 0, memoryMap: [] };
  const guest = await connectGuest(channel, { hello });
  const host = hosts[0]!;
  host.on('VCPU_GET_MTRR_TYPE', () => ({ type: 6 }));
  const before = host.chunks;
  await Promise.all(Array.from({ length: 100 }, (_, i) => guest.vcpus[0]!.mtrrType(i)));
  assert.equal(host.chunks - before, 1);
  await guest.detach();
  await listener.close();
  rmSync(directory, { recursive: true });
});
