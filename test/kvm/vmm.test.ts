import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { getU32 } from '../../src/abi/bytes.ts';
import { STATE_SIZE } from '../../src/abi/state.ts';
import { deferred } from '../../src/awaitable.ts';
import { attachKvm, type KvmMachine } from '../../src/drivers/kvm/index.ts';
import type { KvmVcpu } from '../../src/drivers/kvm/vcpu.ts';
import { CONTINUE, type MachineHandler, type Stop } from '../../src/machine/index.ts';
import { mappings, statusNumber } from '../../src/system/proc.ts';
import { missing, start, until } from './kit.ts';
import { MicroVm, type MicroVmOptions } from './micro-vm.ts';

const ARMED_MAIN = new URL('./armed-main.js', import.meta.url).pathname;
/** Counted up by vCPU 0 all the time; see actions.S. */
const ROUNDS = 0x20010;
const SECCOMP_MODE_FILTER = 2;

class Recorder implements MachineHandler {
  readonly created: number[] = [];
  readonly stops: Stop[] = [];
  readonly ended = deferred<Error | undefined>();
  onRequest: (vcpu: KvmVcpu) => void = () => {};
  stop(_: KvmVcpu, stop: Stop) {
    this.stops.push(stop);
    return CONTINUE;
  }
  request(vcpu: KvmVcpu): undefined {
    this.onRequest(vcpu);
  }
  vcpuCreated(vcpu: KvmVcpu): void {
    this.created.push(vcpu.index);
  }
  closed(error?: Error): void {
    this.ended.resolve(error);
  }
}

/** The state letter of a process (proc_pid_stat(5)). */
function stateOf(pid: number): string {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return stat[stat.lastIndexOf(')') + 2]!;
}

describe('what a VMM does while its VM is attached', { skip: missing('gcc', 'objcopy') ?? false }, () => {
  let vm: MicroVm;
  let machine: KvmMachine;
  let handler: Recorder;

  const rounds = (): number => {
    const bytes = new Uint8Array(4);
    assert.equal(machine.memory.read(ROUNDS, bytes), true, 'guest memory can be read');
    return getU32(bytes, 0);
  };
  const goesOn = async (): Promise<void> => {
    const from = rounds();
    await until(() => rounds() !== from, 'the guest goes on');
  };
  /** The registers of a vCPU. */
  const registers = (index = 0): Promise<Uint8Array> =>
    new Promise((resolve) => {
      handler.onRequest = (vcpu) => {
        if (vcpu.index !== index) return;
        const state = new Uint8Array(STATE_SIZE);
        vcpu.readState(state);
        resolve(state);
      };
      void machine.vcpus[index]!.request();
    });
  const run = async (options: MicroVmOptions = {}, unsafe = false): Promise<void> => {
    vm = await MicroVm.start(options);
    machine = attachKvm({ pid: vm.pid, unsafe });
    // Its threads have set themselves up when the guest runs.
    await goesOn();
    machine.attach(handler);
  };

  beforeEach(() => {
    handler = new Recorder();
  });
  afterEach(async () => {
    await machine.close();
    await vm.stop();
  });

  it('pauses its vCPUs: they can be looked at, and stand still', async () => {
    await run({ vcpus: 2 });
    await vm.tell('hold');
    const still = rounds();
    assert.deepEqual(await registers(0), await registers(0));
    await registers(1);
    machine.detach();
    assert.equal(rounds(), still);
    await vm.tell('release');
    await goesOn();
  });

  it('cannot take the memory that it shares with kvmi away', async () => {
    await run();
    await registers(0);
    const shared = mappings(vm.pid).filter(({ name }) => /^\/memfd: /.test(name));
    assert.ok(shared.length > 0, 'there is such memory');
    for (const { start, end } of shared) {
      const fd = openSync(`/proc/${vm.pid}/map_files/${start.toString(16)}-${end.toString(16)}`, 'r+');
      try {
        assert.throws(() => ftruncateSync(fd, 0), { code: 'EPERM' });
      } finally {
        closeSync(fd);
      }
    }
    await registers(0);
  });

  it('is stopped by SIGSTOP: its vCPUs can be looked at, and it stays stopped', async () => {
    await run({ vcpus: 2 });
    await registers(0);
    process.kill(vm.pid, 'SIGSTOP');
    await until(() => 'Tt'.includes(stateOf(vm.pid)), 'the VMM has stopped');
    const first = await registers(0);
    await registers(1);
    const still = rounds();
    assert.deepEqual(await registers(0), first, 'the vCPU stands still');
    machine.detach();
    await until(() => stateOf(vm.pid) === 'T', 'the VMM is stopped after detach');
    assert.equal(rounds(), still);
    process.kill(vm.pid, 'SIGCONT');
    await goesOn();
  });

  it('is stopped by SIGSTOP while something is armed: detach leaves it stopped', async () => {
    await run();
    machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
    await until(() => handler.stops.length > 10, 'steps');
    process.kill(vm.pid, 'SIGSTOP');
    await until(() => 'Tt'.includes(stateOf(vm.pid)), 'the VMM has stopped');
    machine.detach();
    await until(() => stateOf(vm.pid) === 'T', 'the VMM is stopped after detach');
    process.kill(vm.pid, 'SIGCONT');
    await goesOn();
  });

  it('stops and continues while something is armed: so do the events', async () => {
    await run();
    machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
    for (let round = 0; round < 5; round++) {
      const before = handler.stops.length;
      await until(() => handler.stops.length > before + 10, 'steps');
      process.kill(vm.pid, 'SIGSTOP');
      await until(() => 'Tt'.includes(stateOf(vm.pid)), 'the VMM has stopped');
      process.kill(vm.pid, 'SIGCONT');
    }
    const before = handler.stops.length;
    await until(() => handler.stops.length > before + 10, 'steps again');
    machine.detach();
    await goesOn();
  });

  it('adds a vCPU', async () => {
    await run();
    await registers(0);
    await vm.tell('addVcpu');
    await until(() => handler.created.length > 0, 'it is announced');
    assert.deepEqual(handler.created, [1]);
    assert.equal((await registers(1)).length, STATE_SIZE);
  });

  it('executes another program: the machine is closed', async () => {
    await run();
    machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
    await until(() => handler.stops.length > 10, 'steps');
    void vm.tell('exec').catch(() => {});
    assert.equal(await handler.ended.promise, undefined);
    // The kernel closes descriptors a little before the program has its name.
    const comm = () => readFileSync(`/proc/${vm.pid}/comm`, 'latin1');
    await until(() => /sleep/.test(comm()), 'the other program runs');
    assert.equal(statusNumber(vm.pid, 'TracerPid'), 0, 'and is not traced');
  });

  it('ends: the machine is closed', async () => {
    await run({ vcpus: 2 });
    machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
    await until(() => handler.stops.length > 10, 'steps');
    process.kill(vm.pid, 'SIGKILL');
    assert.equal(await handler.ended.promise, undefined);
  });

  it('has seccomp filters: its vCPUs can be looked at, and nothing is armed', async () => {
    await run({ filter: true });
    await registers(0);
    assert.throws(
      () => machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! }),
      /singlestep is not available: a seccomp filter of the VMM/,
    );
    machine.detach();
    await goesOn();
  });

  it('has seccomp filters: the first trap is refused as well', async () => {
    await run({ filter: true });
    await assert.rejects(
      async () => machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! }),
      /singlestep is not available: a seccomp filter of the VMM/,
    );
  });

  it('has seccomp filters: breakpoints are refused', async () => {
    await run({ filter: true });
    await assert.rejects(
      async () => machine.probes.set(0x10080n, () => {}),
      /singlestep is not available: a seccomp filter of the VMM/,
    );
  });

  it('has seccomp filters: with `unsafe` events are reported, and the filters are in force afterwards', async () => {
    await run({ filter: true }, true);
    machine.arm({ kind: 'singlestep', vcpu: machine.vcpus[0]! });
    await until(() => handler.stops.length > 100, 'steps');
    const { tid } = machine.vcpus[0]!.thread!.tracee;
    machine.detach();
    assert.equal(statusNumber(tid, 'Seccomp'), SECCOMP_MODE_FILTER);
    await goesOn();
  });

  for (const kind of ['paused', 'running'] as const) {
    it(`has seccomp filters: it survives a SIGKILL of the tracer with a vCPU that is ${kind}`, async () => {
      await run({ filter: true });
      machine.detach();
      const tracer = start(process.execPath, [ARMED_MAIN, String(vm.pid), 'actions', kind]);
      await tracer.printed('armed');
      tracer.process.kill('SIGKILL');
      await tracer.finished;
      await goesOn();
      assert.equal(statusNumber(vm.pid, 'TracerPid'), 0);
    });
  }
});
