import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { getU32 } from '../../src/abi/bytes.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { attachKvm, type KvmMachine } from '../../src/drivers/kvm/index.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { missing, type Qemu, startQemu, temporaryFolder, until } from '../kvm/kit.ts';

/* Of test/kvm/counter.S: its counter, its code, and the instruction there that counts, executed once in each round. */
const COUNTER = 0x10000;
const CODE = 0xf0000;
const BREAKPOINT = '0xf0031';

describe('kvmi break on stock KVM', { skip: missing('gcc', 'qemu-system-x86_64') ?? false }, () => {
  const folder = temporaryFolder();
  let qemu: Qemu;
  let observer: KvmMachine;

  const count = (): number => {
    const bytes = new Uint8Array(4);
    observer.memory.read(COUNTER, bytes);
    return getU32(bytes, 0);
  };
  const code = (): Uint8Array => {
    const bytes = new Uint8Array(256);
    assert.equal(observer.memory.read(CODE, bytes), true);
    return bytes;
  };

  before(async () => {
    qemu = await startQemu(folder);
    observer = attachKvm({ pid: qemu.pid });
    await until(() => count() > 0, 'the guest counts');
  });
  after(async () => {
    await observer.close();
    qemu.kill();
  });

  it('reports each execution of an instruction, once', async () => {
    const { code, stdout, stderr } = await kvmi([
      'break',
      `kvm:${qemu.pid}`,
      BREAKPOINT,
      '-n',
      '5',
      '-o',
      'jsonl',
    ]);
    assert.equal(code, EXIT.ok.code, stderr);
    const hits = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { rip: string; rax: string });
    assert.deepEqual(
      hits.map(({ rip }) => rip),
      ['0x31', '0x31', '0x31', '0x31', '0x31'],
    );
    const counters = hits.map(({ rax }) => Number(rax));
    assert.deepEqual(
      counters,
      counters.map((_, i) => counters[0]! + i),
    );
  });

  it('does not keep others from reading, and is named to who would hold the VM too', async () => {
    const breaking = new KvmiProcess(['break', `kvm:${qemu.pid}`, BREAKPOINT, '-o', 'jsonl']);
    try {
      await breaking.seen('stdout', /rip/);
      for (const args of [
        ['info', `kvm:${qemu.pid}`],
        ['info', String(qemu.pid)],
        ['read', `kvm:${qemu.pid}`, String(COUNTER), '4', '--physical', '--hex'],
      ]) {
        const { code, stderr } = await kvmi(args);
        assert.equal(code, EXIT.ok.code, stderr);
      }
      for (const args of [
        ['break', `kvm:${qemu.pid}`, BREAKPOINT],
        ['regs', `kvm:${qemu.pid}`],
      ]) {
        const { code, stderr } = await kvmi(args);
        assert.equal(code, EXIT.busy.code, stderr);
        assert.match(stderr, new RegExp(`process ${breaking.child.pid} traces .*\\[E_BUSY\\]`));
      }
    } finally {
      breaking.kill('SIGINT');
      await breaking.ended;
    }
  });

  it('killed, it leaves the code of the guest as it was, and the guest counts on', async () => {
    const before = code();
    const breaking = new KvmiProcess(['break', `kvm:${qemu.pid}`, BREAKPOINT, '-o', 'jsonl']);
    await breaking.seen('stdout', /rip/, 3);
    assert.deepEqual(code(), before, 'while it is set');
    breaking.kill('SIGKILL');
    await breaking.ended;
    assert.deepEqual(code(), before, 'after the kill');
    const from = count();
    await until(() => count() - from > 1000, 'the guest counts on');
  });

  it('says that the VM ended before the probe was removed', async () => {
    const other = await startQemu(folder);
    const breaking = new KvmiProcess(['break', `kvm:${other.pid}`, BREAKPOINT, '-o', 'jsonl', '-v']);
    await breaking.seen('stdout', /rip/, 3);
    assert.match(breaking.stderr, /waiting at 0xf0031, by a debug register/);
    other.kill();
    const { code } = await breaking.ended;
    assert.equal(code, EXIT.error.code, breaking.stderr);
    assert.match(breaking.stderr, /the VM is gone/);
    assert.doesNotMatch(breaking.stderr, /the probe is removed/);
  });
});
