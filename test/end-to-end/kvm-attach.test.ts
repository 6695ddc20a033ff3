import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { ACCESS } from '../../src/machine/index.ts';
import { type Guest, listen, type ToolServer } from '../../src/tool/index.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';
import { missing, type Qemu, startQemu, temporaryFolder } from '../kvm/kit.ts';

/* Of test/kvm/counter.S. */
const COUNTER = 0x10000;
const MSR_FLAG = 0x10010;
const SYSENTER_CS = 0x174;
const EVENTS = 20;

describe('kvmi attach, and a tool in another process', {
  skip: missing('gcc', 'qemu-system-x86_64') ?? false,
}, () => {
  const folder = temporaryFolder();
  let qemu: Qemu;
  let server: ToolServer;
  let attach: KvmiProcess;
  let guest: Guest;

  /** The first events of a kind, each answered with continue. */
  const collect = <T>(
    name: 'PF' | 'MSR',
    of: (data: { gpa: number; new_value: bigint }) => T,
  ): Promise<T[]> =>
    new Promise((resolve) => {
      const seen: T[] = [];
      guest.on(name, ({ data }) => {
        if (seen.length === EVENTS) return;
        seen.push(of(data as never));
        if (seen.length === EVENTS) resolve(seen);
      });
    });
  const countsOn = async (): Promise<void> => {
    const from = await guest.memory.u64(COUNTER);
    const deadline = performance.now() + 10_000;
    while ((await guest.memory.u64(COUNTER)) === from) {
      assert.ok(performance.now() < deadline, 'the guest counts on');
    }
  };

  before(async () => {
    qemu = await startQemu(folder);
  });
  after(() => qemu?.kill());
  beforeEach(async () => {
    server = await listen(`unix:${join(folder, 'tool')}`);
    attach = new KvmiProcess(['attach', String(qemu.pid), '--tool', server.address]);
    const { value } = await server[Symbol.asyncIterator]().next();
    assert.ok(value, 'the tool is hooked');
    guest = value;
  });
  afterEach(async () => {
    try {
      await countsOn();
    } finally {
      attach.kill('SIGINT');
      const { code, stderr } = await attach.ended;
      await server.close();
      assert.equal(code, EXIT.interrupted.code, stderr);
    }
  });

  it('gets single steps', async () => {
    const rips: bigint[] = [];
    await guest.singlestep(guest.vcpus[0]!, ({ registers }) => {
      rips.push(registers.rip);
      return rips.length < EVENTS;
    });
    assert.ok(
      rips.every((rip, i) => i === 0 || rip !== rips[i - 1]),
      'each step goes on',
    );
  });

  it('gets writes to a page', async () => {
    const seen = collect('PF', ({ gpa }) => gpa);
    await guest.enable('PF');
    await guest.setPageAccess([{ gpa: COUNTER, access: ACCESS.read | ACCESS.execute }]);
    assert.ok((await seen).every((gpa) => gpa - (gpa % 4096) === COUNTER));
    await guest.setPageAccess([{ gpa: COUNTER, access: ACCESS.all }]);
  });

  it('gets writes to an MSR', async () => {
    const seen = collect('MSR', ({ new_value }) => new_value);
    await guest.enable('MSR');
    await guest.vcpus[0]!.controlMsr(SYSENTER_CS, true);
    await guest.memory.write(MSR_FLAG, Uint8Array.of(1));
    const values = await seen;
    assert.ok(
      values.every((value, i) => i === 0 || value === values[i - 1]! + 1n),
      `the counter, once in each round: ${values}`,
    );
    await guest.memory.write(MSR_FLAG, Uint8Array.of(0));
    await guest.vcpus[0]!.controlMsr(SYSENTER_CS, false);
  });
});
