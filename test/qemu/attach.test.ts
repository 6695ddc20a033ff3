import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { decodeState, getRegister, putRegister, regsOf, STATE_SIZE } from '../../src/abi/state.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { KvmiError } from '../../src/error.ts';
import type { Vcpu } from '../../src/machine/index.ts';
import { TestHandler } from '../kit/handler.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const skip = whyNoLinuxGuest() ?? false;

async function stateOf(handler: TestHandler, vcpu: Vcpu): Promise<Uint8Array> {
  const state = new Uint8Array(STATE_SIZE);
  await handler.held(vcpu, async () => vcpu.readState(state));
  return state;
}

/** The descriptors of this process, but for those that come and go with child processes. */
function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

async function rejectsWith(promise: Promise<unknown>, code: string): Promise<void> {
  const started = Date.now();
  await assert.rejects(promise, (error) => error instanceof KvmiError && error.code === code);
  assert.ok(Date.now() - started < 2000, `${code} takes less than 2 s`);
}

async function gdbStubs(vm: LinuxGuest): Promise<string[]> {
  const chardevs = (await vm.monitor.execute('query-chardev')) as { label: string; filename: string }[];
  return chardevs.filter(({ label }) => label === 'gdb').map(({ filename }) => filename);
}

for (const smp of [1, 2]) {
  describe(`attaching to QEMU, -smp ${smp}`, { skip }, () => {
    let vm: LinuxGuest;
    let machine: QemuMachine;

    before(async () => {
      vm = await LinuxGuest.boot({ smp });
      machine = await openQemu({ qmp: vm.qmp });
    });
    after(async () => {
      await machine?.close();
      await vm?.kill();
    });

    afterEach(() => machine.detach());

    test('opening and attaching do not touch the guest', async () => {
      const stops: string[] = [];
      const forget = vm.monitor.onEvent(({ name }) => stops.push(name));
      await TestHandler.attach(machine);
      await machine.detach();
      await vm.monitor.execute('query-status');
      forget();
      assert.deepEqual(stops, []);
      assert.deepEqual(await gdbStubs(vm), []);
      assert.equal(machine.name, 'kvmi-test');
      assert.equal(machine.vcpus.length, smp);
    });

    test("a vCPU's state is what QEMU shows of it", async () => {
      const handler = await TestHandler.attach(machine);
      for (const vcpu of machine.vcpus) {
        await handler.held(vcpu, async () => {
          const block = new Uint8Array(STATE_SIZE);
          await vcpu.readState(block);
          const { regs, sregs } = decodeState(block);
          const shown = await vm.monitor.hmp('info registers', vcpu.index);
          const value = (pattern: RegExp) => BigInt(`0x${pattern.exec(shown)![1]}`);
          assert.equal(regs.rip, value(/RIP=(\w+)/));
          assert.equal(regs.rsp, value(/RSP=(\w+)/));
          assert.equal(regs.r15, value(/R15=(\w+)/));
          assert.equal(sregs.cr3, value(/CR3=(\w+)/));
          assert.equal(sregs.efer, value(/EFER=(\w+)/));
          assert.equal(sregs.gs.base, value(/GS =\w+ (\w+)/));
          assert.equal(sregs.idt.base, value(/IDT=\s+(\w+)/));
          assert.equal(BigInt(sregs.tr.limit), value(/TR =\w+ \w+ (\w+)/));
          assert.equal(block[0], sregs.cs.l ? 8 : 4, 'mode');
        });
      }
      await machine.detach();
    });

    test('MSRs, XCR0 and XSAVE are what the guest has set up', async () => {
      const handler = await TestHandler.attach(machine);
      const vcpu = machine.vcpus[0]!;
      await handler.held(vcpu, async () => {
        const entry = await vcpu.readMsr(0xc0000082);
        assert.ok(entry! >= 0xffffffff80000000n, 'LSTAR points into the kernel');
        assert.equal(await vcpu.readMsr(0x1b), 0xfee00900n, 'APIC base: enabled, boot processor');
        assert.equal(await vcpu.readMsr(0xffffffff), undefined);
        assert.equal((await vcpu.xcr0()) & 1n, 1n);
        const area = new Uint8Array(4096);
        await vcpu.readXsave(area);
        assert.equal(area[0]! | (area[1]! << 8), 0x37f, 'x87 control word');
        assert.equal(area[512]! & 3, 3, 'x87 and SSE are present');
        assert.equal(await vcpu.mtrrType(0x100000), 6, 'RAM is write-back');
        assert.equal(await vcpu.mtrrType(0xfee00000), 0, 'the APIC is not');
      });
      await machine.detach();
    });

    test('CPUID is what the guest sees', async () => {
      const handler = await TestHandler.attach(machine);
      for (const vcpu of machine.vcpus) {
        const [vendor, features, beyond] = await handler.held(vcpu, async () => [
          await vcpu.cpuid(0, 0),
          await vcpu.cpuid(1, 0),
          await vcpu.cpuid(0x7fff, 0),
        ]);
        const bytes = Buffer.alloc(12);
        [vendor!.ebx, vendor!.edx, vendor!.ecx].forEach((word, i) => {
          bytes.writeUInt32LE(word, 4 * i);
        });
        const seen = await vm.run(`grep -m1 vendor_id /proc/cpuinfo; grep 'initial apicid' /proc/cpuinfo`);
        assert.match(seen, new RegExp(`vendor_id\\s+: ${bytes.toString('latin1')}`));
        assert.equal(features!.ebx >>> 24, vcpu.index, 'initial APIC id');
        assert.equal(beyond, undefined);
      }
      await machine.detach();
    });

    test('registers that are written are there, and can be put back', async () => {
      const handler = await TestHandler.attach(machine);
      const vcpu = machine.vcpus.at(-1)!;
      const state = new Uint8Array(STATE_SIZE);
      let second: Promise<bigint> | undefined;
      const first = await handler.held(vcpu, async () => {
        await vcpu.readState(state);
        const changed = state.slice();
        putRegister(changed, 'r15', 0x5a5a_0123_4567_89abn);
        vcpu.writeRegisters(regsOf(changed));
        // Asked for meanwhile, it is served before the vCPU runs on.
        second = handler.held(vcpu, async () => {
          const after = new Uint8Array(STATE_SIZE);
          await vcpu.readState(after);
          vcpu.writeRegisters(regsOf(state));
          return getRegister(after, 'r15');
        });
        return state.slice();
      });
      assert.equal(await second, 0x5a5a_0123_4567_89abn);
      assert.deepEqual(regsOf(first), regsOf(state));
      await vm.nextTicks(2);
    });

    test('200 times attached, stopped and detached: nothing is left', async () => {
      const text = await KernelText.of(vm);
      const once = async () => {
        const handler = await TestHandler.attach(machine);
        for (const vcpu of machine.vcpus) await stateOf(handler, vcpu);
        await machine.detach();
      };
      await once();
      const descriptors = openDescriptors();
      for (let i = 0; i < 200; i++) await once();
      assert.equal(openDescriptors(), descriptors, 'open descriptors of this process');
      assert.deepEqual(await gdbStubs(vm), []);
      assert.deepEqual(await text.changes(vm), []);
      await vm.nextTicks(3);
    });

    test('a held vCPU does not run, while the others do', { skip: smp === 1 && 'one vCPU' }, async () => {
      const handler = await TestHandler.attach(machine);
      const [held, other] = [machine.vcpus[0]!, machine.vcpus[1]!];
      await vm.run('taskset 2 sh -c "while true; do :; done" >/dev/null 2>&1 & echo $! >/tmp/spin');
      await handler.held(held, async () => {
        const before = new Uint8Array(STATE_SIZE);
        await held.readState(before);
        const rips = new Set<bigint>();
        for (let i = 0; i < 10; i++) {
          rips.add(decodeState(await stateOf(handler, other)).regs.rip);
          // Requests that follow at once are served at one stop.
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        assert.ok(rips.size > 1, 'the other vCPU executes');
        const shown = await vm.monitor.hmp('info registers', held.index);
        assert.equal(BigInt(`0x${/RIP=(\w+)/.exec(shown)![1]}`), decodeState(before).regs.rip);
      });
      await vm.run('kill $(cat /tmp/spin)');
      await machine.detach();
      await vm.nextTicks(2);
    });

    test('a VM that is paused stays paused, and is served', async () => {
      await vm.monitor.execute('stop');
      const handler = await TestHandler.attach(machine);
      const state = await stateOf(handler, machine.vcpus[0]!);
      assert.equal(
        decodeState(await stateOf(handler, machine.vcpus[0]!)).regs.rip,
        decodeState(state).regs.rip,
      );
      await machine.detach();
      assert.deepEqual(await vm.monitor.execute('query-status'), {
        status: 'paused',
        singlestep: false,
        running: false,
      });
      await vm.monitor.execute('cont');
      await vm.nextTicks(2);
    });

    test('a VM that is paused and resumed by others while attached', async () => {
      const handler = await TestHandler.attach(machine);
      await stateOf(handler, machine.vcpus[0]!);
      // Between two stops of ours the VM runs.
      await vm.nextTicks(1);
      await vm.monitor.execute('stop');
      await stateOf(handler, machine.vcpus[0]!);
      assert.equal(((await vm.monitor.execute('query-status')) as { running: boolean }).running, false);
      await vm.monitor.execute('cont');
      await vm.nextTicks(2);
      await stateOf(handler, machine.vcpus[0]!);
      await vm.nextTicks(2);
      await machine.detach();
      assert.deepEqual(handler.preUnhooks, ['suspend']);
      await vm.nextTicks(2);
    });

    test('a second handler, a busy monitor and a busy gdbstub are refused in time', async () => {
      await TestHandler.attach(machine);
      await rejectsWith(machine.attach(new TestHandler()), 'E_BUSY');
      const second = await openQemu({ qmp: vm.qmp });
      await rejectsWith(second.attach(new TestHandler()), 'E_BUSY');
      await second.close();
      await machine.detach();
      await rejectsWith(openQemu({ qmp: join(vm.directory, 'nothing') }), 'E_QMP_CONNECT');

      const path = join(vm.directory, 'debugger');
      await vm.monitor.hmp(`gdbserver unix:${path},server=on,wait=off`);
      const debuggerSocket = connect(path);
      await new Promise((resolve) => debuggerSocket.once('connect', resolve));
      await until(async () => !(await gdbStubs(vm))[0]!.startsWith('disconnected'));
      await rejectsWith(machine.attach(new TestHandler()), 'E_BUSY');
      debuggerSocket.write('$D;1#b0');
      debuggerSocket.end();
      await until(async () => (await gdbStubs(vm))[0]!.startsWith('disconnected'));
      await vm.monitor.execute('cont');

      // Free, it is used and stays.
      const handler = await TestHandler.attach(machine);
      await stateOf(handler, machine.vcpus[0]!);
      await machine.detach();
      assert.match((await gdbStubs(vm))[0]!, /^disconnected:.*debugger/);
      await vm.monitor.hmp('gdbserver none');
      await vm.nextTicks(2);
    });

    test('the guest resets: the machine goes on', async () => {
      const handler = await TestHandler.attach(machine);
      for (const vcpu of machine.vcpus) await machine.arm({ kind: 'breakpoint', vcpu });
      await vm.monitor.execute('system_reset');
      await stateOf(handler, machine.vcpus[0]!);
      await machine.detach();
      assert.deepEqual(handler.preUnhooks, []);
    });

    test('QEMU dies: whatever waits ends, with the reason', async () => {
      const handler = await TestHandler.attach(machine);
      const waiting = handler.held(machine.vcpus[0]!, async () => {
        vm.process.kill('SIGKILL');
        await handler.gone;
        await machine.vcpus[0]!.readState(new Uint8Array(STATE_SIZE));
      });
      const ended = assert.rejects(waiting);
      const error = await handler.gone;
      assert.match(error!.message, /QEMU has ended|is closed/);
      await ended;
      await assert.rejects(async () => machine.memory.write(0x1000, new Uint8Array(1)));
      await assert.rejects(machine.attach(new TestHandler()));
      await machine.detach();
    });
  });
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (const deadline = Date.now() + 5000; !(await condition()); ) {
    assert.ok(Date.now() < deadline, 'in time');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
