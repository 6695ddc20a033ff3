import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { getU32 } from '../../src/abi/bytes.ts';
import { attachKvm, type KvmMachine } from '../../src/drivers/kvm/index.ts';
import { statusNumber } from '../../src/system/proc.ts';
import { kernelSlots, missing, start, startQemu, temporaryFolder, until } from './kit.ts';
import { MicroVm } from './micro-vm.ts';

const ARMED_MAIN = new URL('./armed-main.js', import.meta.url).pathname;
/** With those of all kinds: 52 kills. */
const KILLS = 8;
const LATEST_KILL_MS = 50;
/** Enough for a trap that is still armed to be met many times. */
const ROUNDS = 1000;
/** A byte of actions.S that is never executed. */
const UNUSED = 0x1003f;
/** The word of its mailbox that asks for an action, and one of the actions. */
const ACTION = 0x20000;
const WRITE_MSR = 3;

function tasks(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).map(Number);
}

/** Whether any process has these words in its command line. */
function isRunning(...words: string[]): boolean {
  return readdirSync('/proc').some((name) => {
    try {
      const args = readFileSync(`/proc/${name}/cmdline`, 'latin1').split('\0');
      return words.every((word) => args.some((arg) => arg.endsWith(word)));
    } catch {
      return false;
    }
  });
}

/** A guest that counts at `counter`, seen by a machine that never attaches. */
class Counting {
  readonly pid: number;
  readonly memory: KvmMachine['memory'];
  readonly #counter: number;

  constructor(machine: KvmMachine, pid: number, counter: number) {
    this.memory = machine.memory;
    this.pid = pid;
    this.#counter = counter;
  }

  count(): number {
    const bytes = new Uint8Array(4);
    assert.equal(this.memory.read(this.#counter, bytes), true, 'the VMM lives');
    return getU32(bytes, 0);
  }

  async goesOn(rounds = ROUNDS): Promise<void> {
    const from = this.count();
    await until(() => this.count() - from >= rounds, `the guest counts on by ${rounds}`);
  }

  /**
   * Nothing is left: no tracer, no write protection, and no trap – the guest would run into it, and its VMM, which
   * knows nothing of it, would not let it go on.
   */
  async isDisarmed(): Promise<void> {
    await until(() => !isRunning('guard-main.js', String(this.pid)), 'the guard has done its work');
    for (const tid of tasks(this.pid)) assert.equal(statusNumber(tid, 'TracerPid'), 0, `thread ${tid}`);
    const flags = readFileSync(`/proc/${this.pid}/smaps`, 'latin1').match(/^VmFlags:.*$/gm) ?? [];
    assert.ok(flags.length > 0, 'the VMM lives');
    assert.ok(!flags.some((line) => / uw\b/.test(line)), 'no page is write-protected');
    await this.goesOn();
  }
}

/** Starts a tracer that arms `kind`, and kills it at some point after its first event. */
async function killTracer(
  guest: Counting,
  name: string,
  kind: string,
  provoked?: { readonly again: () => void; readonly isOver: () => boolean },
): Promise<void> {
  const tracer = start(process.execPath, [ARMED_MAIN, String(guest.pid), name, kind]);
  const provoking = provoked && setInterval(provoked.again, 5);
  await tracer.printed('armed').finally(() => clearInterval(provoking));
  if (provoked) await until(provoked.isOver, 'what was provoked is over');
  await delay(Math.random() * LATEST_KILL_MS);
  tracer.process.kill('SIGKILL');
  await tracer.finished;
}

describe('a tracer is killed with something armed', { skip: missing('gcc', 'objcopy') ?? false }, () => {
  const folder = temporaryFolder();

  for (const kind of ['singlestep', 'hardware', 'page', 'msr']) {
    it(`in QEMU: ${kind}`, { skip: missing('qemu-system-x86_64') ?? false, timeout: 120_000 }, async () => {
      const qemu = await startQemu(folder);
      const machine = attachKvm({ pid: qemu.pid });
      const guest = new Counting(machine, qemu.pid, 0x10000);
      try {
        await until(() => machine.memory.read(0x10000, new Uint8Array(4)), 'the VM has memory');
        await guest.goesOn(1);
        for (let kill = 0; kill < KILLS; kill++) {
          await killTracer(guest, 'counter', kind);
          await guest.isDisarmed();
          // An MSR that is still filtered would end QEMU.
          machine.memory.write(0x10010, Uint8Array.of(1));
          await guest.goesOn();
          machine.memory.write(0x10010, Uint8Array.of(0));
        }
      } finally {
        await machine.close();
        qemu.kill();
      }
    });
  }

  for (const kind of ['singlestep', 'hardware', 'page']) {
    it(`in a VMM with two vCPUs that ends at any exit but its own: ${kind}`, {
      timeout: 120_000,
    }, async () => {
      const vm = await MicroVm.start({ vcpus: 2 });
      const machine = attachKvm({ pid: vm.pid });
      const guest = new Counting(machine, vm.pid, 0x20010);
      for (let kill = 0; kill < KILLS - 2; kill++) {
        await killTracer(guest, 'actions', kind);
        await guest.isDisarmed();
      }
      await machine.close();
      await vm.stop();
    });
  }

  for (const [guestName, kind] of [
    ['actions', 'untouched'],
    ['counter', 'read'],
  ] as const) {
    it(`pages that are away come back: ${kind} ones of ${guestName}`, {
      skip: missing('qemu-system-x86_64') ?? false,
      timeout: 120_000,
    }, async () => {
      const vm = guestName === 'counter' ? await startQemu(folder) : await MicroVm.start({ vcpus: 2 });
      const machine = attachKvm({ pid: vm.pid });
      const guest = new Counting(machine, vm.pid, guestName === 'counter' ? 0x10000 : 0x20010);
      await until(() => kernelSlots(vm.pid).length > (guestName === 'counter' ? 1 : 0), 'the VM has memory');
      await guest.goesOn(1);
      const before = kernelSlots(vm.pid);
      for (let kill = 0; kill < 10; kill++) {
        await killTracer(guest, guestName, kind);
        await guest.isDisarmed();
        assert.deepEqual(kernelSlots(vm.pid), before, 'the slots are what they were');
      }
      await machine.close();
      if (vm instanceof MicroVm) await vm.stop();
      else vm.kill();
    });
  }

  it('the guard takes int3 out of guest memory', { timeout: 120_000 }, async () => {
    const vm = await MicroVm.start({ vcpus: 2 });
    const machine = attachKvm({ pid: vm.pid });
    const guest = new Counting(machine, vm.pid, 0x20010);
    const byte = (): number => {
      const bytes = new Uint8Array(1);
      machine.memory.read(UNUSED, bytes);
      return bytes[0]!;
    };
    machine.memory.write(UNUSED, Uint8Array.of(0x5a));
    const tracer = start(process.execPath, [ARMED_MAIN, String(vm.pid), 'actions', 'int3']);
    await tracer.printed('armed');
    assert.equal(byte(), 0xcc);
    tracer.process.kill('SIGKILL');
    await until(() => byte() === 0x5a, 'the byte is back');
    await guest.isDisarmed();
    await machine.close();
    await vm.stop();
  });

  it('with several vCPUs the guard removes the MSR filter', { timeout: 120_000 }, async () => {
    const vm = await MicroVm.start({ vcpus: 2 });
    const machine = attachKvm({ pid: vm.pid });
    const guest = new Counting(machine, vm.pid, 0x20010);
    const word = (gpa: number): number => {
      const bytes = new Uint8Array(4);
      machine.memory.read(gpa, bytes);
      return getU32(bytes, 0);
    };
    const writeMsr = (): void => void machine.memory.write(ACTION, Uint8Array.of(WRITE_MSR));
    const isOver = (): boolean => word(ACTION) === 0;
    for (let kill = 0; kill < 2; kill++) {
      // Until the guard has done its work nothing but the VMM's ignorance answers a write: there is none then.
      await killTracer(guest, 'actions', 'msr', { again: writeMsr, isOver });
      await guest.isDisarmed();
      writeMsr();
      await until(isOver, 'the guest has written the MSR');
      await guest.goesOn();
    }
    await machine.close();
    await vm.stop();
  });
});
