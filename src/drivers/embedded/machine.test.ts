import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { RecordingHandler } from '../../../test/kit/recording-handler.ts';
import type { Answer } from '../../machine/index.ts';
import { createEmbeddedMachine } from './index.ts';

const COUNT = '48 ff c0 eb fb'; // 1: inc rax; jmp 1b
const IDLE = 'fb f4 eb fc'; // 1: sti; hlt; jmp 1b
/** A test that waits for something that should come soon gives up after this. */
const PATIENCE = 10_000;

/** Resolves when `condition` holds, looking at it in each turn of the event loop. */
async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + PATIENCE;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`${what}: did not happen`);
    await nextTurn();
  }
}

function attached(code: string, options: ConstructorParameters<typeof BareGuest>[1] = {}) {
  const guest = new BareGuest(code, options);
  const handler = new RecordingHandler();
  guest.machine.attach(handler);
  return { guest, machine: guest.machine, handler, vcpu: guest.machine.vcpus[0]! };
}

describe('embedded: the machine', () => {
  test('runs on the event loop until it is paused', async () => {
    const { machine } = new BareGuest(COUNT);
    machine.start();
    await until(() => machine.instructions > 100_000, 'progress');
    machine.pause();
    const { instructions } = machine;
    await nextTurn();
    await nextTurn();
    assert.equal(machine.instructions, instructions);
    machine.resume();
    await until(() => machine.instructions > instructions, 'progress after resume');
    await machine.close();
  });

  test('an idle machine sleeps until its timer, and uses no time meanwhile', async () => {
    // x2APIC: LVT timer vector 0x40, divide by 1, count from r15d; then sti; hlt
    const code =
      'b9 32 08 00 00 b8 40 00 00 00 31 d2 0f 30 b9 3e 08 00 00 b8 0b 00 00 00 0f 30 b9 38 08 00 00 44 89 f8 0f 30 fb f4';
    const guest = new BareGuest(code, { clock: 'host' });
    const { machine, cpu } = guest;
    guest.set('r15', 200_000_000n);
    machine.start();
    await until(() => cpu.halted, 'halt');
    const { instructions } = machine;
    const usage = process.cpuUsage();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const { user, system } = process.cpuUsage(usage);
    assert.equal(machine.instructions, instructions);
    assert.ok(user + system < 60_000, `used ${user + system} of 100000 µs`);
    await until(() => guest.vector === 0x40, 'timer interrupt');
    await machine.close();
  });

  describe('requests', () => {
    test('are served at once while the machine runs, all that were made by one call', async () => {
      const { machine, handler, vcpu } = attached(COUNT);
      machine.start();
      await until(() => machine.instructions > 0, 'progress');
      vcpu.request();
      vcpu.request();
      assert.deepEqual(handler.requests, []);
      await Promise.resolve();
      assert.deepEqual(handler.requests, [0]);
      await machine.close();
    });

    test('wait while the machine is paused', async () => {
      const { machine, handler, vcpu } = attached(COUNT);
      vcpu.request();
      await nextTurn();
      assert.deepEqual(handler.requests, []);
      machine.start();
      await until(() => handler.requests.length === 1, 'request');
      await machine.close();
    });

    test('take a vCPU out of HLT', async () => {
      const { machine, handler, vcpu } = attached(IDLE);
      machine.start();
      await until(() => vcpu.cpu.halted, 'halt');
      vcpu.request();
      await nextTurn();
      assert.deepEqual(handler.requests, [0]);
      assert.equal(vcpu.cpu.halted, true);
      await machine.close();
    });

    test('hold the vCPU until the promise is there', async () => {
      const { machine, handler, vcpu } = attached(COUNT);
      let release: () => void = () => {};
      handler.onRequest = () =>
        new Promise((resolve) => {
          release = () => resolve(undefined);
        });
      vcpu.request();
      assert.equal(machine.run(1000), 0);
      release();
      await nextTurn();
      assert.equal(machine.run(1000), 1000);
    });

    test('made while a stop is handled come before the guest is entered again', () => {
      const { guest, machine, handler, vcpu } = attached('cc 48 ff c0 f4');
      machine.arm({ kind: 'breakpoint', vcpu });
      let rax = -1n;
      handler.answer = () => {
        vcpu.request();
        guest.rip = BigInt(BARE.code + 1);
        return { action: 'retry' };
      };
      handler.onRequest = () => {
        rax = guest.get('rax');
        return undefined;
      };
      machine.run(10);
      assert.deepEqual(handler.requests, [0]);
      assert.equal(rax, 0n);
      assert.equal(guest.get('rax'), 1n);
    });

    test('can end the vCPU', () => {
      const { machine, handler, vcpu } = attached(COUNT);
      const crashes: string[] = [];
      machine.onCrash = ({ reason }) => crashes.push(reason);
      handler.onRequest = () => 'crash';
      vcpu.request();
      machine.run(100);
      assert.deepEqual(crashes, ['answer']);
      assert.equal(machine.run(100), 0);
    });

    test('of a vCPU that was not started wait for it', () => {
      const { machine, handler } = attached(COUNT, { vcpus: 2 });
      machine.vcpus[1]!.request();
      machine.run(1000);
      assert.deepEqual(handler.requests, []);
    });
  });

  describe('attach and detach', () => {
    test('one handler at a time', () => {
      const { machine } = attached(COUNT);
      assert.throws(() => machine.attach(new RecordingHandler()), { code: 'E_BUSY' });
      machine.detach();
      machine.detach();
      machine.attach(new RecordingHandler());
    });

    test('detaching takes every trap away', () => {
      const { guest, machine, handler, vcpu } = attached(
        '0f a2 48 89 04 25 00 00 03 00 0f 01 04 25 00 00 03 00 f4',
      );
      for (const kind of ['cpuid', 'descriptor', 'singlestep'] as const) machine.arm({ kind, vcpu });
      machine.arm({ kind: 'page', gfn: BARE.data >> 12, access: 0, view: 0 });
      machine.detach();
      machine.run(10);
      assert.deepEqual(handler.stops, []);
      assert.equal(guest.vector, -1);
    });

    test('a stop that is open counts as continue, and its late answer for nothing', async () => {
      const { guest, machine, handler, vcpu } = attached('cc f4');
      machine.arm({ kind: 'breakpoint', vcpu });
      let answer: (answer: Answer) => void = () => {};
      handler.answer = () =>
        new Promise((resolve) => {
          answer = resolve;
        });
      machine.run(10);
      machine.detach();
      machine.run(10);
      assert.equal(guest.vector, 3);
      const rip = guest.rip;
      answer({ action: 'crash' });
      await nextTurn();
      assert.equal(vcpu.cpu.dead, false);
      assert.equal(guest.rip, rip);
    });

    test('a handler may detach in the middle of its own call', () => {
      const { guest, machine, handler, vcpu } = attached('cc f4');
      machine.arm({ kind: 'breakpoint', vcpu });
      handler.answer = () => {
        machine.detach();
        return { action: 'crash' };
      };
      machine.run(10);
      assert.equal(guest.vector, 3);
      assert.equal(vcpu.cpu.dead, false);
    });

    test('a handler that throws is let go, and the guest goes on', async () => {
      for (const fails of [
        () => {
          throw new Error('broken');
        },
        () => Promise.reject(new Error('broken')),
      ]) {
        const { guest, machine, handler, vcpu } = attached('cc f4');
        machine.arm({ kind: 'breakpoint', vcpu });
        handler.answer = fails;
        machine.run(10);
        await nextTurn();
        machine.run(10);
        assert.equal((handler.closedWith as Error).message, 'broken');
        assert.equal(guest.vector, 3);
      }
    });

    test('a handler cannot run a machine', () => {
      const { guest, machine, handler, vcpu } = attached('cc f4');
      machine.arm({ kind: 'breakpoint', vcpu });
      handler.answer = () => {
        new BareGuest(COUNT).machine.run(1);
        return { action: 'continue' };
      };
      machine.run(10);
      assert.equal((handler.closedWith as Error & { code: string }).code, 'E_REENTRANT');
      assert.equal(guest.vector, 3);
    });

    test('a trap of another machine’s vCPU cannot be armed', () => {
      const { machine } = attached(COUNT);
      const { vcpus } = new BareGuest(COUNT).machine;
      assert.throws(() => machine.arm({ kind: 'cpuid', vcpu: vcpus[0]! }), { code: 'E_ARGUMENT' });
    });
  });

  describe('vCPUs', () => {
    // wrmsr x2APIC command: STARTUP of processor 1 at 0x10 × 4 KiB + 0x1000
    const START = 'b9 30 08 00 00 ba 01 00 00 00 b8 11 46 00 00 0f 30 f4';

    test('are started by a startup command, in flat 32-bit code', () => {
      const guest = new BareGuest(START, { vcpus: 2 });
      const other = guest.machine.vcpus[1]!;
      guest.write(0x11000, '31 c0 40 40 b9 07 00 00 00 90 eb fd'); // xor eax, eax; inc eax twice; mov ecx, 7; nops
      assert.equal(other.started, false);
      guest.machine.run(100_000);
      assert.equal(other.started, true);
      assert.deepEqual([other.cpu.r[0], other.cpu.r[2], other.cpu.mode64], [2, 7, false]);
    });

    test('that are added are announced before they run', async () => {
      const { guest, machine, handler } = attached(START);
      let seen: () => void = () => {};
      handler.vcpuCreated = (vcpu) => {
        handler.created.push(vcpu.index);
        return new Promise<void>((resolve) => {
          seen = resolve;
        });
      };
      guest.write(0x11000, '40 eb fd');
      const adding = machine.addVcpu();
      assert.deepEqual(handler.created, [1]);
      machine.run(100);
      const other = machine.vcpus[1]!;
      assert.equal(other.instructions, 0);
      seen();
      assert.equal(await adding, other);
      machine.run(100);
      assert.ok(other.instructions > 0);
    });

    test('have traps of their own', () => {
      const { guest, machine, handler } = attached(COUNT, { vcpus: 2 });
      const other = machine.vcpus[1]!;
      guest.write(0x11000, '0f a2 eb fc');
      other.started = true;
      other.cpu.ripLo = 0x11000;
      machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
      machine.run(200);
      assert.ok(handler.stops.length > 0);
      assert.equal(handler.kinds.includes('cpuid'), false);
      assert.ok(other.instructions > 0);
    });

    test('there is a limit', async () => {
      assert.throws(() => createEmbeddedMachine({ vcpus: 0 }), { code: 'E_ARGUMENT' });
      assert.throws(() => createEmbeddedMachine({ vcpus: 1000 }), { code: 'E_ARGUMENT' });
      const machine = createEmbeddedMachine({ vcpus: 64, memory: 16 * 1024 * 1024 });
      await assert.rejects(machine.addVcpu(), { code: 'E_LIMIT' });
    });
  });

  describe('the end', () => {
    test('a shutdown offers to unhook first, then everything is over', async () => {
      const { machine, handler } = attached(COUNT);
      machine.start();
      await machine.shutdown();
      assert.deepEqual(handler.reasons, ['shutdown']);
      assert.equal(handler.closedWith, 'closed');
      assert.equal(machine.run(100), 0);
      assert.throws(() => machine.attach(new RecordingHandler()), { code: 'E_GONE' });
    });

    test('a reset starts again from the image', async () => {
      const machine = createEmbeddedMachine({ clock: 'instructions', bootArgument: 1 });
      machine.run(50_000);
      const text = machine.serial.text;
      machine.memory.write(0x300000, new Uint8Array([1]));
      await machine.reset();
      assert.equal(machine.memory.bytes[0x300000], 0);
      machine.run(50_000);
      assert.equal(machine.serial.text, text + text);
    });

    test('the guest can end the machine with an exit code', () => {
      const guest = new BareGuest('b0 2a e6 f4 eb fe'); // mov al, 42; out 0xf4, al
      const codes: number[] = [];
      guest.machine.onExit = (code) => codes.push(code);
      guest.machine.run(1000);
      assert.deepEqual([codes, guest.machine.exitCode], [[42], 42]);
      assert.ok(guest.machine.instructions < 10);
    });

    test('kill does not ask', async () => {
      const { machine, handler } = attached(COUNT);
      await machine.kill();
      assert.deepEqual(handler.reasons, []);
      assert.equal(handler.closedWith, 'closed');
    });
  });

  test('options that cannot be are refused', () => {
    const image = { bytes: new Uint8Array(2 * 1024 * 1024), address: 0, entry: 0 };
    assert.throws(() => createEmbeddedMachine({ memory: 1000 }), { code: 'E_ARGUMENT' });
    assert.throws(() => createEmbeddedMachine({ memory: 1024 * 1024, image }), { code: 'E_ARGUMENT' });
    assert.throws(() => createEmbeddedMachine({ uuid: new Uint8Array(3) }), { code: 'E_ARGUMENT' });
  });

  describe('many machines', () => {
    test('share the event loop, and each serves a request in the turn that it comes in', async () => {
      const machines = Array.from({ length: 200 }, () => attached(COUNT));
      for (const { machine } of machines) machine.start();
      await until(() => machines.every(({ machine }) => machine.instructions > 0), 'progress of all');
      for (const { vcpu } of machines) vcpu.request();
      await nextTurn();
      assert.ok(machines.every(({ handler }) => handler.requests.length === 1));
      const counts = machines.map(({ machine }) => machine.instructions);
      const start = [...counts];
      await until(
        () => machines.every(({ machine }, i) => machine.instructions > 2 * start[i]!),
        'more progress',
      );
      for (const { machine } of machines) await machine.close();
    });

    test('that are idle leave the loop to others', async () => {
      const idle = Array.from({ length: 50 }, () => new BareGuest(IDLE).machine);
      for (const machine of idle) machine.start();
      await until(() => idle.every((machine) => machine.vcpus[0]!.cpu.halted), 'all halt');
      const before = idle.map((machine) => machine.instructions);
      for (let i = 0; i < 20; i++) await nextTurn();
      assert.deepEqual(
        idle.map((machine) => machine.instructions),
        before,
      );
      for (const machine of idle) await machine.close();
    });
  });
});
