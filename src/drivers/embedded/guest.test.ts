import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ACTION_FAULTED, createEmbeddedMachine, kernelSymbol, kernelSymbols, MiniKernel } from './index.ts';

function booted(options: Parameters<typeof createEmbeddedMachine>[0] = {}) {
  const machine = createEmbeddedMachine({ clock: 'instructions', bootArgument: 1, ...options });
  const kernel = new MiniKernel(machine);
  kernel.boot();
  return { machine, kernel };
}

describe('embedded: the mini kernel', () => {
  test('is what its source makes', (t) => {
    try {
      execFileSync('as', ['--version']);
      execFileSync('ld', ['--version']);
    } catch {
      t.skip('GNU as and ld, which assemble the kernel, are not installed');
      return;
    }
    const build = fileURLToPath(new URL('../../../../guest/build.mjs', import.meta.url));
    execFileSync(process.execPath, [build, '--check'], { stdio: 'pipe' });
  });

  test('boots, runs programs in ring 3 and preempts them', () => {
    const machine = createEmbeddedMachine({ clock: 'instructions' });
    const kernel = new MiniKernel(machine);
    machine.run(10_000_000);
    assert.equal(
      machine.serial.text,
      'kvmi mini kernel 1.0 (x86-64)\ninit: hello from ring 3\nticker: running\n',
    );
    const tasks = kernel.tasks();
    assert.deepEqual(
      tasks.slice(0, 3).map(({ pid, ppid, comm, isKernel }) => [pid, ppid, comm, isKernel]),
      [
        [0, 0, 'swapper', true],
        [1, 0, 'init', false],
        [2, 1, 'ticker', false],
      ],
    );
    assert.equal(new Set(tasks.map(({ cr3 }) => cr3)).size, tasks.length, 'each has tables of its own');
    assert.ok(kernel.read('ticks') > 50n);
    assert.ok(kernel.read('syscalls') > 100n);
    assert.ok(kernel.read('switches') > 100n);
  });

  test('frees what its programs used', () => {
    const machine = createEmbeddedMachine({ clock: 'instructions' });
    const kernel = new MiniKernel(machine);
    const used: bigint[] = [];
    for (let i = 0; i < 5; i++) {
      machine.run(4_000_000);
      used.push(kernel.read('pages_used'));
    }
    assert.ok(used.at(-1)! < 64n, `pages used: ${used.join(' ')}`);
    assert.ok(Math.max(...kernel.tasks().map(({ pid }) => pid)) > 5, 'programs came and went');
  });

  test('the same machine does the same again', () => {
    const [first, second] = [0, 1].map(() => {
      const machine = createEmbeddedMachine({ clock: 'instructions' });
      machine.run(3_000_000);
      return Buffer.from(machine.memory.bytes);
    });
    assert.ok(first!.equals(second!));
  });

  test('does what the menu has', () => {
    const { kernel } = booted();
    const expected: [string, bigint, bigint, bigint][] = [
      ['nop', 5n, 0n, 5n],
      ['int3', 0n, 0n, 1n],
      ['wrmsr', 0x140n, 1n, 1n],
      ['wrmsr', 0x140n, 6n, ACTION_FAULTED | 13n],
      ['rdmsr', 0x12345n, 0n, ACTION_FAULTED | 13n],
      ['xsetbv', 4n, 0n, 7n],
      ['sgdt', 0n, 0n, kernelSymbol('gdt')],
      ['sidt', 0n, 0n, kernelSymbol('idt')],
      ['lgdt', 0n, 0n, 1n],
      ['lidt', 0n, 0n, 1n],
      ['sldt', 0n, 0n, 0x48n],
      ['lldt', 0n, 0n, 0x48n],
      ['str', 0n, 0n, 0x38n],
      ['ltr', 0n, 0n, 0x38n],
      ['cpuid', 0n, 0n, 0x756e65470000000dn],
      ['vmcall', 0n, 0n, BigInt.asUintN(64, -1000n)],
      ['vmmcall', 0n, 0n, BigInt.asUintN(64, -1000n)],
      ['write', 16n, 0xabn, 0xabn],
      ['read', 16n, 0n, 0xabn],
      ['execute', 0n, 0n, 0x1234n],
      ['write_crossing', 0x1122334455667788n, 0n, 0x1122334455667788n],
      ['read_crossing', 0n, 0n, 0x1122334455667788n],
      ['modify', 24n, 5n, 5n],
      ['copy_to', 100n, 0n, 0n],
      ['ud2', 0n, 0n, ACTION_FAULTED | 6n],
      ['divide', 0n, 0n, ACTION_FAULTED],
      ['fault', 0n, 0n, ACTION_FAULTED | 14n],
      ['fault', 1n << 60n, 0n, ACTION_FAULTED | 13n],
      ['steps', 0n, 0n, 7n],
      ['trap_flag', 0n, 0n, 5n],
      ['xmm', 77n, 0n, 77n],
      ['cr4', 1n << 62n, 0n, ACTION_FAULTED | 13n],
    ];
    for (const [action, arg0, arg1, result] of expected) {
      assert.equal(kernel.call(action, arg0, arg1), result, `${action} ${arg0} ${arg1}`);
    }
    const cr0 = kernel.call('cr0', 0n);
    assert.equal(kernel.call('cr0', 0x40000n), cr0 ^ 0x40000n);
    const cr4 = kernel.call('cr4', 0n);
    assert.equal(kernel.call('cr4', 0x800n), cr4 ^ 0x800n);
    assert.notEqual(kernel.call('cr3'), 0n);
  });

  test('starts other processors, each with a menu of its own', () => {
    const { machine, kernel } = booted({ vcpus: 3 });
    for (const cpu of [1, 2]) {
      kernel.call('start_cpu', BigInt(cpu));
      machine.run(10_000);
      assert.equal(machine.vcpus[cpu]!.started, true);
      assert.equal(kernel.call('cpuid', 1n, 0n, cpu) >> 56n, BigInt(cpu), 'its APIC id');
    }
    assert.equal(kernel.call('nop', 9n), 9n);
  });

  test('has symbols for tools', () => {
    const { kernel } = booted();
    // `fault` reads 8 bytes: the banner begins with "kvmi min".
    assert.equal(kernel.call('fault', kernelSymbol('banner')), 0x6e696d20696d766bn);
    assert.ok(kernelSymbols().has('syscall_table'));
    assert.throws(() => kernelSymbol('no_such_symbol'), { code: 'E_ARGUMENT' });
  });

  test('can end itself: with an exit code, or by a triple fault', () => {
    const exiting = booted();
    exiting.kernel.post('exit', 7n);
    exiting.machine.run(10_000);
    assert.equal(exiting.machine.exitCode, 7);
    const faulting = booted();
    const crashes: string[] = [];
    faulting.machine.onCrash = ({ reason }) => crashes.push(reason);
    faulting.kernel.post('triple_fault');
    faulting.machine.run(10_000);
    assert.deepEqual(crashes, ['triple fault']);
  });

  test('is idle when nobody asks', () => {
    const { machine } = booted();
    machine.run(1000);
    assert.equal(machine.run(1000), 0);
  });

  test('its output comes as lines', async () => {
    const machine = createEmbeddedMachine({ bootArgument: 1 });
    const lines = machine.serial.lines();
    const first = lines.next();
    machine.start();
    assert.deepEqual(await first, { value: 'kvmi mini kernel 1.0 (x86-64)', done: false });
    await lines.return();
    await machine.close();
  });
});
