import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { getU32, putU32 } from '../../src/abi/bytes.ts';
import { getRegister, putRegister, STATE_SIZE } from '../../src/abi/index.ts';
import { attachKvm, type KvmMachine } from '../../src/drivers/kvm/index.ts';
import { ACCESS, type Answer, CONTINUE, RETRY, type Stop, type Vcpu } from '../../src/machine/index.ts';
import { kernelSlots, missing, type Qemu, startQemu, startQemuWith, temporaryFolder, until } from './kit.ts';
import { MicroVm } from './micro-vm.ts';

/* The layout of actions.S. */
const MAILBOX = 0x20000;
const DONE = 0x20004;
const RESULT = 0x20008;
const EXCEPTIONS = 0x2000c;
const ROUNDS = 0x20010;
const COUNT = 0x20020;
const PAGE = 0x30000;
const FUNCTION = 0x800;
const ACTIONS = { write: 4, read: 5, execute: 6 } as const;
/** The instruction of `read` is this long. */
const READ_LENGTH = 4n;

type PageStop = Extract<Stop, { kind: 'page' }>;

function wordOf(machine: KvmMachine, gpa: number): number {
  const bytes = new Uint8Array(4);
  assert.equal(machine.memory.read(gpa, bytes), true, `reading 0x${gpa.toString(16)}`);
  return getU32(bytes, 0);
}

/** Attaches; the stops at pages are kept, and answered by what `answer` is at that time. */
class Watcher {
  readonly stops: PageStop[] = [];
  readonly machine: KvmMachine;
  answer: (vcpu: Vcpu, stop: PageStop) => Answer = () => CONTINUE;
  failure: Error | undefined;

  constructor(pid: number, unsafe = true) {
    this.machine = attachKvm({ pid, unsafe });
    this.machine.attach({
      stop: (vcpu, stop) => {
        if (stop.kind !== 'page') return CONTINUE;
        this.stops.push(stop);
        return this.answer(vcpu, stop);
      },
      request: () => undefined,
      closed: (error) => {
        this.failure = error ?? new Error('the VMM has gone');
      },
    });
  }

  async restrict(gpa: number, access: number): Promise<void> {
    await this.machine.arm({ kind: 'page', gfn: gpa / 4096, access, view: 0 });
  }

  async goesOn(counter: number): Promise<void> {
    const from = wordOf(this.machine, counter);
    await until(() => wordOf(this.machine, counter) - from > 20, 'the guest counts on');
  }
}

for (const vcpus of [1, 2]) {
  describe(`pages of a VM with ${vcpus} vCPUs`, { skip: missing('gcc', 'objcopy') ?? false }, () => {
    let vm: MicroVm;
    let watcher: Watcher;
    let before: unknown;

    beforeEach(async () => {
      vm = await MicroVm.start({ vcpus });
      before = kernelSlots(vm.pid);
      watcher = new Watcher(vm.pid);
    });
    afterEach(async () => {
      const { machine } = watcher;
      machine.detach();
      assert.deepEqual(kernelSlots(vm.pid), before, 'the slots are what they were');
      await watcher.goesOn(ROUNDS);
      assert.equal(wordOf(machine, EXCEPTIONS), 0, 'no exception was raised in the guest');
      await machine.close();
      await vm.stop();
      assert.equal(watcher.failure, undefined);
    });

    const act = async (action: keyof typeof ACTIONS): Promise<number> => {
      const { machine } = watcher;
      const done = wordOf(machine, DONE);
      const number = new Uint8Array(4);
      putU32(number, 0, ACTIONS[action]);
      machine.memory.write(MAILBOX, number);
      await until(() => wordOf(machine, DONE) !== done, action);
      return wordOf(machine, RESULT);
    };
    const byte = (): number => wordOf(watcher.machine, PAGE) & 0xff;

    for (const [denied, action] of [
      [ACCESS.read, 'read'],
      [ACCESS.write, 'write'],
      [ACCESS.execute, 'execute'],
    ] as const) {
      it(`reports the only access that is denied: ${action}`, async () => {
        // Write alone is trapped otherwise: here the page is away for all of them.
        const access = action === 'write' ? 0 : ACCESS.all & ~denied;
        watcher.machine.memory.write(PAGE, Uint8Array.of(0x17));
        await watcher.restrict(PAGE, access);
        const value = await act(action);
        const stops = watcher.stops.splice(0);
        assert.equal(stops.length, 1);
        assert.equal(stops[0]!.access, denied);
        assert.equal(stops[0]!.gpa, action === 'execute' ? PAGE + FUNCTION : PAGE);
        if (action === 'execute') assert.equal(stops[0]!.gva, BigInt(PAGE + FUNCTION));
        if (action === 'read') assert.equal(value, 0x17);
        if (action === 'write') assert.equal(byte(), 0x42);
        if (access === 0) return;
        for (const allowed of ['read', 'write', 'execute'] as const)
          if (allowed !== action) await act(allowed);
        assert.deepEqual(watcher.stops, [], 'what is allowed is not reported');
        assert.equal(byte(), 0x42, 'what is allowed is done');
      });
    }

    it('shows the guest memory as it is: the tool reads and writes it all the time', async () => {
      await watcher.restrict(PAGE, 0);
      assert.equal(watcher.machine.memory.write(PAGE, Uint8Array.of(0x55)), true);
      assert.equal(byte(), 0x55);
      assert.equal(await act('read'), 0x55);
      assert.equal(watcher.machine.memory.regions.length, 1, 'regions are those of the VM');
    });

    it('stops before a write', async () => {
      watcher.machine.memory.write(PAGE, Uint8Array.of(0));
      await watcher.restrict(PAGE, 0);
      const seen: number[] = [];
      watcher.answer = () => {
        seen.push(byte());
        return CONTINUE;
      };
      await act('write');
      assert.deepEqual([...seen, byte()], [0, 0x42]);
    });

    it('denies an access again and again until it is allowed', async () => {
      for (const action of ['read', 'write', 'execute'] as const) {
        await watcher.restrict(PAGE, 0);
        watcher.stops.length = 0;
        watcher.answer = () => {
          if (watcher.stops.length === 5) void watcher.restrict(PAGE, ACCESS.all);
          return RETRY;
        };
        await act(action);
        assert.ok(watcher.stops.length >= 5, `${action}: ${watcher.stops.length} stops`);
      }
    });

    it('leaves a read out when the tool moves the guest on', async () => {
      watcher.machine.memory.write(PAGE, Uint8Array.of(0x11));
      await watcher.restrict(PAGE, 0);
      const state = new Uint8Array(STATE_SIZE);
      watcher.answer = (vcpu) => {
        vcpu.readState(state);
        putRegister(state, 'rip', getRegister(state, 'rip') + READ_LENGTH);
        putRegister(state, 'rax', 0x99n);
        vcpu.writeRegisters(state.slice(8, 152));
        return RETRY;
      };
      assert.equal(await act('read'), 0x99);
      assert.equal(watcher.stops.length, 1);
    });

    it('works on pages that are used all the time, code included, several at once', async () => {
      const counter = vcpus === 1 ? ROUNDS : COUNT;
      await watcher.restrict(PAGE, 0);
      await watcher.restrict(MAILBOX, 0);
      await watcher.goesOn(counter);
      await watcher.restrict(0x10000, ACCESS.all & ~ACCESS.execute);
      await watcher.restrict(0x21000, 0);
      await watcher.restrict(0xff000, 0);
      await watcher.goesOn(counter);
      await act('read');
      const kinds = new Set(watcher.stops.map(({ access }) => access));
      assert.deepEqual([...kinds].sort(), [ACCESS.read, ACCESS.write, ACCESS.execute]);
      await watcher.restrict(MAILBOX, ACCESS.all);
      await watcher.restrict(0x21000, ACCESS.read | ACCESS.execute);
      await watcher.goesOn(counter);
    });

    it('takes everything back page by page', async () => {
      for (const gpa of [PAGE, MAILBOX, 0x31000, 0]) await watcher.restrict(gpa, 0);
      assert.notDeepEqual(kernelSlots(vm.pid), before);
      for (const gpa of [MAILBOX, PAGE, 0, 0x31000]) await watcher.restrict(gpa, ACCESS.all);
      assert.deepEqual(kernelSlots(vm.pid), before);
    });
  });
}

describe('pages that are taken away', {
  skip: missing('gcc', 'objcopy', 'qemu-system-x86_64') ?? false,
}, () => {
  const folder = temporaryFolder();
  const COUNTER = 0x10000;
  /** Where the BIOS counts: memory that is read-only for the guest. */
  const CODE = 0xf0000;

  /** Resolves when the guest counts: QEMU has laid out its memory for good then. */
  const counting = async (pid: number): Promise<void> => {
    await until(() => kernelSlots(pid).length > 1, 'QEMU has its memory');
    const watcher = new Watcher(pid);
    await until(() => watcher.machine.memory.read(COUNTER, new Uint8Array(4)), 'the counter is in memory');
    await watcher.goesOn(COUNTER);
    await watcher.machine.close();
  };

  it('takes `unsafe`', async () => {
    const vm = await MicroVm.start();
    const watcher = new Watcher(vm.pid, false);
    assert.throws(() => watcher.machine.arm({ kind: 'page', gfn: 0x30, access: 0, view: 0 }), {
      code: 'E_UNSUPPORTED',
      message: /page-read is not available: .*--unsafe/,
    });
    await watcher.machine.close();
    await vm.stop();
  });

  it('in QEMU: reads, writes and fetches; 20 detachments leave its slots as they were', async () => {
    const qemu = await startQemu(folder, 2);
    await counting(qemu.pid);
    const before = kernelSlots(qemu.pid);
    for (let round = 0; round < 20; round++) {
      const watcher = new Watcher(qemu.pid);
      await watcher.goesOn(COUNTER);
      await watcher.restrict(COUNTER, 0);
      await watcher.restrict(CODE, ACCESS.all & ~ACCESS.execute);
      await until(
        () => [1, 2, 4].every((access) => watcher.stops.some((stop) => stop.access === access)),
        'all kinds of accesses',
      );
      watcher.machine.detach();
      assert.deepEqual(kernelSlots(qemu.pid), before);
      await watcher.goesOn(COUNTER);
      await watcher.machine.close();
      assert.equal(watcher.failure, undefined);
    }
    qemu.kill();
  });

  it('leaves accesses of the VMM itself alone', async () => {
    const path = join(folder, 'qmp');
    const image = join(folder, 'counter.bin');
    const qemu: Qemu = await startQemuWith(
      `-M pc -bios ${image} -nodefaults -m 16 -qmp unix:${path},server=on,wait=off`,
      1,
    );
    await counting(qemu.pid);
    const watcher = new Watcher(qemu.pid);
    await watcher.restrict(0x20000, 0);
    watcher.machine.memory.write(0x20000, Uint8Array.of(0x77));
    const dump = join(folder, 'dump');
    await qmp(path, { execute: 'pmemsave', arguments: { val: 0x20000, size: 4096, filename: dump } });
    assert.equal(readFileSync(dump)[0], 0x77);
    assert.deepEqual(watcher.stops, []);
    await watcher.machine.close();
    qemu.kill();
  });

  it('are put back by detach while the VMM has its vCPUs paused', async () => {
    const vm = await MicroVm.start({ vcpus: 2 });
    const before = kernelSlots(vm.pid);
    const watcher = new Watcher(vm.pid);
    await watcher.restrict(PAGE, 0);
    await vm.tell('hold');
    watcher.machine.detach();
    assert.deepEqual(kernelSlots(vm.pid), before);
    await vm.tell('release');
    await watcher.goesOn(ROUNDS);
    await watcher.machine.close();
    await vm.stop();
  });
});

/** Carries out one command of QEMU's monitor. */
async function qmp(path: string, command: object): Promise<void> {
  const socket = createConnection(path);
  let text = '';
  socket.on('data', (bytes: Buffer) => {
    text += bytes.toString();
  });
  socket.write(`${JSON.stringify({ execute: 'qmp_capabilities' })}\n${JSON.stringify(command)}\n`);
  await until(() => (text.match(/"return"|"error"/g) ?? []).length === 2, 'QEMU answers');
  socket.destroy();
  assert.doesNotMatch(text, /"error"/);
}
