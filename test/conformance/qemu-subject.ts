import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { MiniKernelVm, whyNoMiniKernelVm } from '../kit/mini-kernel-vm.ts';
import { isStubUsed } from '../kit/qemu-stub.ts';
import { MINI_KERNEL_PAGE, miniKernelActions } from './mini-kernel-actions.ts';
import type { GuestAction, RunningSubject, Subject, SubjectGuest } from './subject.ts';

/** A register of the kernel that nothing uses, and that QEMU has. */
const MSR_SYSENTER_CS = 0x174;
const PROGRAM = '/bin/conformance-guest';

/** What the program in the guest can do, on vCPU 0; everything else takes ring 0. A #BP of its own ends it. */
const COMMANDS: { readonly [A in GuestAction]?: string } = {
  noop: 'true',
  int3: `taskset 1 ${PROGRAM} int3 || true`,
};

function compile(): Buffer {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-conformance-'));
  try {
    const source = join(import.meta.dirname, '..', '..', '..', 'test', 'conformance', 'linux-guest.c');
    const program = join(directory, 'guest');
    execFileSync('gcc', ['-static', '-O1', '-s', '-o', program, source]);
    return readFileSync(program);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function whyNoCompiler(): string | undefined {
  try {
    execFileSync('gcc', ['--version']);
  } catch {
    return 'gcc, which compiles the program in the guest, is not installed';
  }
}

async function startLinux(): Promise<RunningSubject> {
  const vm = await LinuxGuest.boot({ smp: 2, files: [{ path: PROGRAM, content: compile() }] });
  const frame = Number(await vm.run(`${PROGRAM} page & sleep 0.2`));
  const machine = await openQemu({ qmp: vm.qmp });
  const guest: SubjectGuest = {
    testPage: { gpa: frame * 4096, gva: await directMapOf(vm, frame) },
    cannot(action) {
      if (action === 'take-exception') return 'a Linux kernel does not survive an exception out of the blue';
      if (COMMANDS[action]) return undefined;
      return 'a program in user space cannot do it, and this guest has no other';
    },
    async act(action) {
      await vm.run(COMMANDS[action]!);
      return 0n;
    },
    isDebugged: () => isStubUsed(vm.monitor),
  };
  return {
    machine,
    guest,
    async close() {
      await machine.close();
      await vm.kill();
    },
  };
}

/** Where the kernel maps a frame: its direct map begins at an address that KASLR chose. */
async function directMapOf(vm: LinuxGuest, frame: number): Promise<bigint> {
  const { page_offset_base } = await symbolsOf(vm, ['page_offset_base']);
  const text = await vm.monitor.hmp(`x /1gx 0x${page_offset_base!.toString(16)}`);
  return BigInt(text.split(':')[1]!.trim()) + BigInt(frame * 4096);
}

/** A Debian guest in an unmodified QEMU, with two vCPUs. */
export const qemuLinuxSubject: Subject = {
  driver: 'qemu (TCG, Linux, -smp 2)',
  unavailable: () => whyNoLinuxGuest() ?? whyNoCompiler(),
  start: startLinux,
  fresh: false,
};

async function startMiniKernel(): Promise<RunningSubject> {
  const vm = await MiniKernelVm.boot();
  const machine = await openQemu({ qmp: vm.qmp });
  return {
    machine,
    guest: {
      ...MINI_KERNEL_PAGE,
      msr: MSR_SYSENTER_CS,
      cannot: () => undefined,
      isDebugged: () => vm.isDebugged(),
      act: miniKernelActions(MSR_SYSENTER_CS, (...call) => vm.act(...call)),
    },
    async close() {
      await machine.close();
      await vm.kill();
    },
  };
}

/** The mini kernel, which can cause every event, in an unmodified QEMU. */
export const qemuSubject: Subject = {
  driver: 'qemu (TCG, -smp 1)',
  unavailable: whyNoMiniKernelVm,
  start: startMiniKernel,
  fresh: false,
  documented: true,
};
