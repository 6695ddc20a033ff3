import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { getU32 } from '../../src/abi/bytes.ts';
import { decodeState, getRegister, STATE_SIZE } from '../../src/abi/index.ts';
import { deferred } from '../../src/awaitable.ts';
import { attachKvm, findKvmMachines, type KvmMachine } from '../../src/drivers/kvm/index.ts';
import type { KvmVcpu } from '../../src/drivers/kvm/vcpu.ts';
import { ACCESS, type Answer, CONTINUE, type MachineHandler, type Stop } from '../../src/machine/index.ts';
import { descriptorTarget, tracerOf } from '../../src/system/proc.ts';
import { missing, type Qemu, startQemu, temporaryFolder, until } from './kit.ts';

const skip = missing('gcc', 'qemu-system-x86_64');
const COUNTER = 0x10000;
const MAGIC = 0x4b564d49;
const MSR_FLAG = 0x10010;
const SYSENTER_CS = 0x174;
/** Linear address of the instruction that reads the counter, once in each round. */
const BREAKPOINT = 0xf0031n;

type Answering = (vcpu: KvmVcpu, stop: Stop) => Answer;

/** A handler whose behaviour a test sets. */
class Scripted implements MachineHandler {
  onStop: Answering = () => CONTINUE;
  onRequest: (vcpu: KvmVcpu) => void = () => {};
  failure: Error | undefined;
  stop(vcpu: KvmVcpu, stop: Stop): Answer {
    return this.onStop(vcpu, stop);
  }
  request(vcpu: KvmVcpu): undefined {
    this.onRequest(vcpu);
  }
  closed(error?: Error): void {
    this.failure = error ?? new Error('the VMM has gone');
  }
}

describe('attach to a QEMU with -accel kvm', { skip: skip ?? false }, () => {
  const folder = temporaryFolder();
  let qemu: Qemu;
  let machine: KvmMachine;
  let handler: Scripted;

  const word = (gpa: number): number => {
    const bytes = new Uint8Array(4);
    assert.equal(machine.memory.read(gpa, bytes), true, `reading 0x${gpa.toString(16)}`);
    return getU32(bytes, 0);
  };
  const vcpu = (): KvmVcpu => machine.vcpus[0]!;
  /** The guest goes on counting. */
  const counts = async (): Promise<void> => {
    const from = word(COUNTER);
    await until(() => word(COUNTER) !== from, 'the guest counts on');
  };
  /** Runs something while the vCPU is outside the guest. */
  const outside = <T>(run: (vcpu: KvmVcpu) => T): Promise<T> =>
    new Promise((resolve, reject) => {
      handler.onRequest = (held) => {
        handler.onRequest = () => {};
        try {
          resolve(run(held));
        } catch (error) {
          reject(error);
        }
      };
      void vcpu().request();
    });
  /** Collects stops. */
  const stops = (count: number, answer: (vcpu: KvmVcpu, stop: Stop, index: number) => Answer | undefined) =>
    new Promise<Stop[]>((resolve) => {
      const seen: Stop[] = [];
      handler.onStop = (held, stop) => {
        if (seen.length === count) return CONTINUE;
        seen.push(stop);
        const answered = answer(held, stop, seen.length) ?? CONTINUE;
        if (seen.length === count) resolve(seen);
        return answered;
      };
    });

  before(async () => {
    qemu = await startQemu(folder);
  });
  after(() => qemu?.kill());
  beforeEach(() => {
    machine = attachKvm({ pid: qemu.pid });
    handler = new Scripted();
    machine.attach(handler);
  });
  afterEach(async () => {
    machine.detach();
    await counts();
    await machine.close();
    assert.equal(handler.failure, undefined);
  });

  it('finds the VM', () => {
    const row = findKvmMachines().find(({ pid }) => pid === qemu.pid);
    assert.deepEqual({ vcpus: row?.vcpus, hookable: row?.hookable }, { vcpus: 1, hookable: true });
  });

  it('is told who traces the VMM already', { skip: missing('gdb') ?? false }, async () => {
    machine.detach();
    const gdb = spawn('gdb', ['-nx', '-q', '-p', String(qemu.pid)], { stdio: ['pipe', 'ignore', 'ignore'] });
    const ended = once(gdb, 'exit');
    try {
      await until(() => tracerOf(qemu.pid) === gdb.pid, 'gdb traces QEMU');
      assert.throws(() => machine.attach(handler), { code: 'E_BUSY', data: { holder: gdb.pid } });
    } finally {
      gdb.stdin.end();
      await ended;
    }
    machine.attach(handler);
  });

  it('reads and writes memory', async () => {
    await until(() => word(COUNTER + 4) === MAGIC, 'the guest has started');
    assert.equal(machine.memory.write(0x20000, Uint8Array.of(1, 2, 3)), true);
    assert.equal(word(0x20000), 0x030201);
    assert.equal(machine.memory.write(0xf0000, Uint8Array.of(0)), false, 'ROM is not written to');
    assert.equal(machine.memory.read(0x7fffffff000, new Uint8Array(1)), false);
  });

  it('reads the registers of a running vCPU', async () => {
    const state = new Uint8Array(STATE_SIZE);
    await outside((held) => held.readState(state));
    const { mode, regs, sregs } = decodeState(state);
    assert.deepEqual([mode, sregs.cs.base, sregs.ds.base], [2, 0xf0000n, 0x10000n]);
    assert.ok(regs.rip < 0x100n, `rip ${regs.rip}`);
    assert.ok(vcpu().tscHz > 1e8);
  });

  it('reads CPUID, XCR0, XSAVE, MSRs and memory types', async () => {
    const found = await outside((held) => {
      const area = new Uint8Array(4096);
      held.readXsave(area);
      return {
        leaf: held.cpuid(0, 0),
        noLeaf: held.cpuid(0x12345678, 0),
        xcr0: held.xcr0(),
        type: held.mtrrType(COUNTER),
        noMsr: held.readMsr(0xdeadbeef),
        same: held.writeXsave(area),
      };
    });
    assert.ok(found.leaf!.eax > 0);
    assert.equal(found.noLeaf, undefined);
    assert.equal(found.xcr0 & 1n, 1n);
    assert.ok([0, 1, 4, 5, 6].includes(found.type));
    assert.equal(found.noMsr, undefined);
    assert.equal(found.same, true);
  });

  it('writes registers', async () => {
    const state = new Uint8Array(STATE_SIZE);
    const marked = await outside((held) => {
      held.readState(state);
      const regs = state.slice(8, 8 + 144);
      regs.set(Uint8Array.of(0x78, 0x56, 0x34, 0x12), 8 * 8);
      held.writeRegisters(regs);
      return getRegister(state, 'r8');
    });
    assert.equal(marked, 0n);
    await outside((held) => held.readState(state));
    assert.equal(getRegister(state, 'r8'), 0x12345678n);
  });

  it('single-steps', async () => {
    const state = new Uint8Array(STATE_SIZE);
    const rips: bigint[] = [];
    const seen = stops(200, (held) => {
      held.readState(state);
      rips.push(getRegister(state, 'rip'));
      return undefined;
    });
    machine.arm({ kind: 'singlestep', vcpu: vcpu() });
    assert.ok((await seen).every((stop) => stop.kind === 'singlestep'));
    machine.disarm({ kind: 'singlestep', vcpu: vcpu() });
    const following = rips.filter((rip, i) => i > 0 && rip !== rips[i - 1]).length;
    assert.equal(following, rips.length - 1, 'each step goes on');
  });

  it('stops at hardware breakpoints, once in each round', async () => {
    const counters: number[] = [];
    const state = new Uint8Array(STATE_SIZE);
    const enough = deferred<void>();
    const remove = await machine.probes.set(BREAKPOINT, (held) => {
      if (counters.length === 20) return;
      counters.push(word(COUNTER));
      held.readState(state);
      if (counters.length === 20) enough.resolve();
    });
    await enough.promise;
    remove();
    assert.equal(decodeState(state).sregs.cs.base + getRegister(state, 'rip'), BREAKPOINT);
    const first = counters[0]!;
    assert.deepEqual(
      counters,
      counters.map((_, i) => first + i),
    );
  });

  it('has a probe for each of the four debug registers', async () => {
    const { probes } = machine;
    const set = async (address: bigint) => probes.set(address, () => {});
    const [removeFirst] = await Promise.all([1n, 2n, 3n, 4n].map(set));
    await assert.rejects(set(5n), { code: 'E_NO_MEMORY' });
    removeFirst!();
    await assert.rejects(set(2n), { code: 'E_BUSY' });
    await set(5n);
  });

  it('reports writes to a page, and lets its own writes through', async () => {
    const page = {
      kind: 'page',
      gfn: COUNTER / 4096,
      access: ACCESS.read | ACCESS.execute,
      view: 0,
    } as const;
    const seen = stops(20, () => {
      assert.equal(machine.memory.write(0x10800, Uint8Array.of(1)), true);
      return undefined;
    });
    await machine.arm(page);
    for (const stop of await seen) {
      assert.ok(stop.kind === 'page' && stop.gpa === COUNTER && stop.access === ACCESS.write);
    }
    machine.disarm({ ...page, access: ACCESS.all });
    await counts();
  });

  it('reports writes to an MSR, and replaces the value', async () => {
    const trap = { kind: 'msr', vcpu: vcpu(), msr: SYSENTER_CS } as const;
    const seen = stops(4, (_, __, index) =>
      index === 2 ? { action: 'continue', value: 0x1234n } : undefined,
    );
    await machine.arm(trap);
    machine.memory.write(MSR_FLAG, Uint8Array.of(1));
    const values = (await seen).map((stop) => (stop.kind === 'msr' ? [stop.old, stop.new] : []));
    machine.memory.write(MSR_FLAG, Uint8Array.of(0));
    await machine.disarm(trap);
    assert.equal(values[1]![0], values[0]![1], 'the value was written');
    assert.equal(values[2]![0], 0x1234n, 'the replaced value was written');
  });

  it('says why something is not possible', () => {
    assert.throws(() => machine.arm({ kind: 'cr', vcpu: vcpu(), cr: 3 }), /cr is not available/);
  });
});

describe('coming and going', { skip: skip ?? false }, () => {
  const folder = temporaryFolder();

  it('leaves nothing behind in 300 attachments to two vCPUs', { timeout: 300_000 }, async () => {
    const qemu = await startQemu(folder, 2);
    const state = new Uint8Array(STATE_SIZE);
    let last = -1;
    for (let cycle = 0; cycle < 300; cycle++) {
      const machine = attachKvm({ pid: qemu.pid });
      const handler = new Scripted();
      machine.attach(handler);
      const asked = new Set<number>();
      await new Promise<void>((resolve) => {
        handler.onRequest = (vcpu) => {
          vcpu.readState(state);
          const copy = state.slice();
          vcpu.readState(state);
          assert.deepEqual(state, copy);
          asked.add(vcpu.index);
          if (asked.size === 2) resolve();
        };
        for (const vcpu of machine.vcpus) void vcpu.request();
      });
      machine.detach();
      const bytes = new Uint8Array(4);
      await until(() => {
        machine.memory.read(COUNTER, bytes);
        return getU32(bytes, 0) !== last;
      }, 'the guest counts on');
      last = getU32(bytes, 0);
      assert.equal(handler.failure, undefined);
      await machine.close();
    }
    const descriptors = readdirSync('/proc/self/fd').map((fd) => descriptorTarget(process.pid, Number(fd)));
    assert.deepEqual(
      descriptors.filter((target) => target?.includes('kvm')),
      [],
      'no descriptor of the VM is held',
    );
    const maps = readFileSync(`/proc/${qemu.pid}/maps`, 'latin1');
    assert.doesNotMatch(maps, /memfd/, 'the agent was removed');
    qemu.kill();
  });
});
