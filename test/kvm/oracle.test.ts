import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { getU32 } from '../../src/abi/bytes.ts';
import { kernelMemslots } from '../../src/drivers/kvm/attach.ts';
import type { Memslot } from '../../src/drivers/kvm/slots/memslots.ts';
import { oracleMemslots } from '../../src/drivers/kvm/slots/oracle-memslots.ts';
import { VmFile } from '../../src/drivers/kvm/slots/vm-file.ts';
import { kernel } from '../../src/drivers/kvm/thread/vmm.ts';
import type { KvmiError } from '../../src/error.ts';
import { kvmDescriptors } from '../../src/system/proc.ts';
import { ProcessMemory } from '../../src/system/process-memory.ts';
import { compile, missing, startQemu, startQemuWith, temporaryFolder, until } from './kit.ts';

/* The ways to find the memory slots of a running VMM, against each other. */

const COUNTER = 0x10000;
/** Slots that the oracle makes for a moment. */
const MARKERS = [503, 504, 505, 506];

const reason = missing('gcc', 'qemu-system-x86_64');
const noKernel = reason === undefined && typeof kernel() === 'string' ? `needs BPF: ${kernel()}` : undefined;

function withVm<T>(pid: number, use: (vm: VmFile) => T): T {
  const vm = new VmFile(pid, kvmDescriptors(pid).vms[0]!);
  try {
    return use(vm);
  } finally {
    vm.release();
  }
}

/** Undefined when the slots are not those of a machine that is set up: firmware is at work. */
function guessed(vm: VmFile): readonly Memslot[] | undefined {
  try {
    return oracleMemslots(vm, false);
  } catch (error) {
    if ((error as KvmiError).code === 'E_NO_MEMSLOTS') return undefined;
    throw error;
  }
}

/** What the oracle finds: what the kernel has, before and after. Undefined when the VMM has changed it meanwhile. */
function found(pid: number): readonly Memslot[] | undefined {
  return withVm(pid, (vm) => {
    const before = kernelMemslots(vm);
    const slots = guessed(vm);
    const after = kernelMemslots(vm);
    assert.ok(!after.some(({ slot }) => MARKERS.includes(slot)), 'no slot of the oracle is left');
    if (!isDeepStrictEqual(before, after)) return undefined;
    // It does not tell all flags.
    const told = before.map(({ flags: _, ...slot }) => slot);
    if (slots) assert.deepEqual(slots, told, 'the oracle finds what the kernel has');
    return slots;
  });
}

/** What the guest of counter.S has counted, where QEMU has it; 0 before it has memory. */
function counter(pid: number): number {
  const [ram] = withVm(pid, kernelMemslots);
  if (!ram) return 0;
  const memory = new ProcessMemory(pid);
  const bytes = new Uint8Array(4);
  memory.read(ram.hva + COUNTER, bytes);
  memory.close();
  return getU32(bytes, 0);
}

describe('memory slots of a running VMM', { skip: reason ?? noKernel ?? false }, () => {
  const folder = temporaryFolder();

  it('are those that the VMM has made', async () => {
    const program = compile('guest', folder);
    const output = join(folder, 'output');
    // Not a child of this process, which it would wait for.
    const script = `sleep 60 | ${program} > ${output} & echo $!`;
    const pid = Number(
      execFileSync('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] }).toString(),
    );
    try {
      await until(() => readFileSync(output, 'latin1').includes('ready'), 'the program is ready');
      const lines = [...readFileSync(output, 'latin1').matchAll(/^slot (\S+) (\S+) (\S+) (\S+) (\S+)$/gm)];
      const made = lines.map(
        ([, slot, gpa, size, hva, readonly]): Memslot => ({
          slot: Number(slot),
          gpa: Number(gpa),
          size: Number(size),
          hva: Number(hva),
          readonly: readonly === '1',
        }),
      );
      assert.deepEqual(
        found(pid),
        made.sort((a, b) => a.gpa - b.gpa),
      );
    } finally {
      process.kill(pid, 'SIGKILL');
    }
  });

  it('are found again and again while the guest counts on', async () => {
    const qemu = await startQemu(folder, 2);
    try {
      await until(() => counter(qemu.pid) > 0, 'the guest has started');
      for (let round = 0; round < 5; round++) {
        assert.ok(found(qemu.pid), 'the VMM has changed nothing');
        const from = counter(qemu.pid);
        await until(() => counter(qemu.pid) !== from, 'the guest counts on');
      }
    } finally {
      qemu.kill();
    }
  });

  for (const options of ['-M pc -m 64', '-M q35 -m 4096', '-M microvm -m 64']) {
    it(`of QEMU ${options}`, async () => {
      const qemu = await startQemuWith(options);
      try {
        await until(() => withVm(qemu.pid, kernelMemslots).length > 1, 'QEMU has its memory');
        await until(() => found(qemu.pid) !== undefined, 'QEMU leaves its memory as it is');
      } finally {
        qemu.kill();
      }
    });
  }
});
