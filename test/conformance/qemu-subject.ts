import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import type { GuestAction, RunningSubject, Subject, SubjectGuest } from './subject.ts';

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

async function startLinux(smp: number): Promise<RunningSubject> {
  const vm = await LinuxGuest.boot({ smp, files: [{ path: PROGRAM, content: compile() }] });
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

/** A Debian guest in an unmodified QEMU. */
export function qemuSubject(smp: number): Subject {
  return {
    driver: `qemu (TCG, -smp ${smp})`,
    unavailable: () => whyNoLinuxGuest() ?? whyNoCompiler(),
    start: () => startLinux(smp),
    fresh: false,
    ...(smp === 1 && { documented: true }),
  };
}
