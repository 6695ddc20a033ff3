import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { decodeState, getRegister, putRegister, regsOf, STATE_SIZE } from '../../src/abi/state.ts';
import { openQemu, type QemuMachine } from '../../src/drivers/qemu/index.ts';
import { type Answer, CONTINUE, RETRY, type Stop, type Vcpu } from '../../src/machine/index.ts';
import { elf, int3Program, ownInt3Program, syscallProgram } from '../kit/elf.ts';
import { TestHandler } from '../kit/handler.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const INT3S = 25;
const CALLS = 20;
/** A system call that no program makes by itself, and the kernel's function for it. */
const SYSCALL = 146;
const SYSCALL_FUNCTION = '__x64_sys_sched_get_priority_max';

/** prctl(PR_SET_TSC, PR_TSC_SIGSEGV), rdtsc, exit(0): sets CR4.TSD, and dies of the rdtsc if that was done. */
const TSD_PROGRAM = elf(
  Uint8Array.from([
    ...[0xbf, 26, 0, 0, 0, 0xbe, 2, 0, 0, 0, 0xb8, 157, 0, 0, 0, 0x0f, 0x05],
    ...[0x0f, 0x31],
    ...[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
  ]),
);
const CR4_TSD = 4n;
/** jmp to itself. */
const SPIN = Uint8Array.of(0xeb, 0xfe);
const SPIN_RIP = 0x400078n;
const MSR_GS_BASE = 0xc0000101;
/** Where kernels are, whatever the number of levels of their page tables. */
const UPPER_HALF = 1n << 63n;

async function stateOf(vcpu: Vcpu): Promise<Uint8Array> {
  const state = new Uint8Array(STATE_SIZE);
  await vcpu.readState(state);
  return state;
}

/** Goes on after the int3. */
async function skip(vcpu: Vcpu): Promise<Answer> {
  const state = await stateOf(vcpu);
  putRegister(state, 'rip', getRegister(state, 'rip') + 1n);
  vcpu.writeRegisters(regsOf(state));
  return RETRY;
}

for (const smp of [1, 2]) {
  describe(`traps of QEMU under TCG, -smp ${smp}`, { skip: whyNoLinuxGuest() ?? false }, () => {
    let vm: LinuxGuest;
    let machine: QemuMachine;
    let handler: TestHandler;
    let text: KernelText;

    before(async () => {
      vm = await LinuxGuest.boot({
        smp,
        args: smp === 1 ? [] : ['-cpu', 'max'],
        files: [
          { path: 'bin/int3', content: int3Program(INT3S) },
          { path: 'bin/own-int3', content: ownInt3Program(INT3S) },
          { path: 'bin/call', content: syscallProgram(SYSCALL, CALLS) },
          { path: 'bin/spin', content: elf(SPIN) },
          { path: 'bin/tsd', content: TSD_PROGRAM },
        ],
      });
      machine = await openQemu({ qmp: vm.qmp });
      text = await KernelText.of(vm);
    });
    after(async () => {
      await machine?.close();
      await vm?.kill();
    });
    afterEach(async () => {
      await machine.detach();
      await vm.nextTicks(2);
      assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
      assert.deepEqual(
        vm.log.filter((line) => /BUG|Oops|panic/.test(line)),
        [],
      );
    });

    async function attach(kinds: readonly ('breakpoint' | 'singlestep')[] = []): Promise<void> {
      handler = await TestHandler.attach(machine);
      for (const kind of kinds) for (const vcpu of machine.vcpus) await machine.arm({ kind, vcpu });
    }

    /** Where a function of the kernel is in guest-physical memory. */
    async function functionAt(name: string): Promise<number> {
      const { [name]: gva } = await symbolsOf(vm, [name]);
      const printed = await vm.monitor.hmp(`gva2gpa 0x${gva!.toString(16)}`);
      return Number(/gpa: (0x[0-9a-f]+)/.exec(printed)![1]);
    }

    /** Runs a program on each vCPU at once. */
    function onEach(program: string): Promise<string> {
      const runs = machine.vcpus.map(({ index }) => `taskset ${1 << index} ${program} & P${index}=$!;`);
      const waits = machine.vcpus.map(({ index }) => `wait $P${index} || exit 1;`);
      return vm.run(`${runs.join(' ')} ${waits.join(' ')}`, 120_000);
    }

    test('int3 on all vCPUs at once: each one is reported, before it has any effect', async () => {
      await attach(['breakpoint']);
      const counts = new Map<number, number>();
      handler.onStop = async (vcpu, stop) => {
        const { regs, sregs } = decodeState(await stateOf(vcpu));
        assert.equal(stop.kind, 'breakpoint');
        assert.equal(sregs.cs.dpl, 3, 'the state is that of the program');
        assert.equal(regs.rbx, BigInt(INT3S - (counts.get(vcpu.index) ?? 0)), 'none was lost or repeated');
        const byte = new Uint8Array(1);
        await machine.memory.read((stop as { gpa: number }).gpa, byte);
        assert.equal(byte[0], 0xcc, 'gpa is that of the int3');
        counts.set(vcpu.index, (counts.get(vcpu.index) ?? 0) + 1);
        return skip(vcpu);
      };
      await onEach('int3');
      assert.deepEqual(
        machine.vcpus.map(({ index }) => counts.get(index)),
        machine.vcpus.map(() => INT3S),
      );
    });

    test("int3 that is the guest's own reaches it", async () => {
      await attach(['breakpoint']);
      let seen = 0;
      handler.onStop = () => {
        seen++;
        return CONTINUE;
      };
      await onEach('own-int3');
      assert.equal(seen, INT3S * smp);
    });

    test('int3 that a tool writes into kernel code, stepped over: every call is seen', async () => {
      const gpa = await functionAt(SYSCALL_FUNCTION);
      await attach(['breakpoint']);
      const original = new Uint8Array(5);
      await machine.memory.read(gpa, original);
      let calls = 0;
      handler.onStop = async (vcpu, stop) => {
        if (stop.kind !== 'breakpoint' || stop.gpa !== gpa) return CONTINUE;
        calls++;
        // The function begins with a nop of five bytes, so that it needs not be executed.
        const state = await stateOf(vcpu);
        putRegister(state, 'rip', getRegister(state, 'rip') + 5n);
        vcpu.writeRegisters(regsOf(state));
        return RETRY;
      };
      assert.equal(Buffer.from(original).toString('hex'), '0f1f440000', 'the nop of ftrace');
      await machine.memory.write(gpa, Uint8Array.of(0xcc));
      await onEach('call');
      assert.equal(calls, CALLS * smp);
      // What the tool leaves behind is taken back when the machine is detached.
    });

    test('code is changed for a CPU that has executed it', async () => {
      const gpa = await functionAt('__x64_sys_getppid');
      await attach();
      const original = new Uint8Array(6);
      await machine.memory.read(gpa, original);
      await vm.run('sh -c true');
      // mov eax, 7; ret
      await machine.memory.write(gpa, Uint8Array.of(0xb8, 7, 0, 0, 0, 0xc3));
      const shown = await vm.run('sh -c "echo \\$PPID"').catch(String);
      await machine.memory.write(gpa, original);
      assert.match(shown, /^7$/m, 'the new code runs');
    });

    test('singlestep: one instruction a stop', async () => {
      await attach();
      const vcpu = machine.vcpus[0]!;
      await vm.run('taskset 1 sh -c "while true; do :; done" >/dev/null 2>&1 & echo $! >/tmp/spin');
      const rips: bigint[] = [];
      let done = () => {};
      const enough = new Promise<void>((resolve) => {
        done = resolve;
      });
      handler.onStop = async (stepped, stop) => {
        assert.deepEqual([stepped.index, stop], [0, { kind: 'singlestep', failed: false }]);
        rips.push(getRegister(await stateOf(vcpu), 'rip'));
        if (rips.length === 30) {
          await machine.disarm({ kind: 'singlestep', vcpu });
          done();
        }
        return CONTINUE;
      };
      await machine.arm({ kind: 'singlestep', vcpu });
      await enough;
      await vm.nextTicks(2);
      assert.equal(rips.length, 30, 'none after disarming');
      assert.ok(
        rips.some((rip, i) => i > 0 && rip > rips[i - 1]! && rip - rips[i - 1]! <= 15n),
        'consecutive instructions',
      );
      await vm.run('kill $(cat /tmp/spin)');
    });

    test('CR4 writes: old and new value, and another value in its place', async () => {
      await attach();
      const writes: Stop[] = [];
      for (const vcpu of machine.vcpus) await machine.arm({ kind: 'cr', vcpu, cr: 4 });
      handler.onStop = async (vcpu, stop) => {
        if (stop.kind !== 'cr') return CONTINUE;
        assert.equal(getRegister(await stateOf(vcpu), 'cr4'), stop.old, 'before the effect');
        writes.push(stop);
        return { action: 'continue', value: stop.new };
      };
      await assert.rejects(vm.run('tsd'), /status 139/, 'rdtsc is forbidden');
      const first = writes.find((stop) => stop.kind === 'cr' && (stop.new & ~stop.old) === CR4_TSD);
      assert.ok(first, 'setting CR4.TSD is reported');

      handler.onStop = (_vcpu, stop) =>
        stop.kind === 'cr' && stop.new & CR4_TSD ? { action: 'continue', value: stop.old } : CONTINUE;
      await vm.run('tsd');
    });

    test('MSR writes of one MSR', { skip: smp === 1 && 'one vCPU cannot be taken offline' }, async () => {
      await attach();
      for (const vcpu of machine.vcpus) await machine.arm({ kind: 'msr', vcpu, msr: MSR_GS_BASE });
      const writes: Extract<Stop, { kind: 'msr' }>[] = [];
      handler.onStop = async (vcpu, stop) => {
        assert.equal(stop.kind, 'msr');
        const write = stop as Extract<Stop, { kind: 'msr' }>;
        assert.equal(await vcpu.readMsr(MSR_GS_BASE), write.old, 'before the effect');
        writes.push(write);
        return CONTINUE;
      };
      const online = '/sys/devices/system/cpu/cpu1/online';
      await vm.run(`echo 0 >${online}; echo 1 >${online}`);
      // The vCPU that comes back starts without a base, and is given that of its own data.
      const [first] = writes;
      assert.equal(first?.old, 0n);
      assert.ok(first.new >= UPPER_HALF, `a base of 0x${first.new.toString(16)} is written`);
    });

    test('an injected exception reaches the program, and is reported', async () => {
      await attach();
      const traps: Stop[] = [];
      handler.onStop = (_vcpu, stop) => {
        traps.push(stop);
        return CONTINUE;
      };
      const run = vm.run('taskset 1 spin').catch((error: Error) => error.message);
      const vcpu = machine.vcpus[0]!;
      for (let injected = false; !injected; ) {
        injected = await handler.held(vcpu, async () => {
          const spinning = getRegister(await stateOf(vcpu), 'rip') === SPIN_RIP;
          if (spinning) vcpu.inject({ vector: 6, errorCode: 0, address: 0n });
          return spinning;
        });
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      assert.match(String(await run), /status 132/, 'SIGILL');
      assert.deepEqual(
        traps.map((stop) => stop.kind === 'trap' && stop.vector),
        [6],
      );
    });

    test('an exception injected during #BP gives way to it', async () => {
      await attach(['breakpoint']);
      const traps: Stop[] = [];
      handler.onStop = async (vcpu, stop) => {
        if (stop.kind !== 'breakpoint') {
          traps.push(stop);
          return CONTINUE;
        }
        vcpu.inject({ vector: 6, errorCode: 0, address: 0n });
        return CONTINUE;
      };
      await assert.rejects(vm.run('int3'), /status 133/, 'SIGTRAP');
      assert.deepEqual(
        traps.map((stop) => stop.kind === 'trap' && stop.vector),
        [3],
      );
    });

    test('what QEMU cannot do has a reason', async () => {
      await attach();
      const vcpu = machine.vcpus[0]!;
      const page = { kind: 'page', gfn: 1, view: 0 } as const;
      for (const trap of [
        { kind: 'hypercall', vcpu },
        { kind: 'cpuid', vcpu },
        { kind: 'descriptor', vcpu },
        { ...page, access: 5 },
      ] as const) {
        await assert.rejects(async () => machine.arm(trap), { code: 'E_UNSUPPORTED' });
      }
      await machine.arm({ ...page, access: 7 });
    });
  });
}
