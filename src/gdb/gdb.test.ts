import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { createEmbeddedMachine, kernelSymbol, MiniKernel } from '../drivers/embedded/index.ts';
import { introspect } from '../introspect.ts';
import type { Guest } from '../tool/index.ts';
import { type GdbServer, listenGdb } from './index.ts';

/* Debian's GDB on the embedded machine, over a socket. */

const GDB_TIMEOUT_MS = 60_000;

function whyNoGdb(): string | undefined {
  try {
    execFileSync('gdb', ['--version'], { stdio: 'ignore' });
    return undefined;
  } catch {
    return 'gdb is not installed';
  }
}

const ENTRY = kernelSymbol('syscall_entry');
const hexOf = (value: bigint): string => `0x${value.toString(16)}`;

describe('GDB', { skip: whyNoGdb() ?? false }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-gdb-test-'));
  const errors: Error[] = [];
  const machine = createEmbeddedMachine({ vcpus: 2 });
  let guest: Guest;
  let server: GdbServer;

  before(async () => {
    new MiniKernel(machine).boot();
    machine.start();
    guest = await introspect(machine);
    server = await listenGdb(guest, `unix:${join(directory, 'gdb')}`, {
      onError: (error) => errors.push(error),
    });
  });
  after(async () => {
    await server.close();
    await guest.detach();
    await machine.close();
    rmSync(directory, { recursive: true });
  });

  /** What GDB prints for commands after it connected. */
  async function gdb(...commands: string[]): Promise<string> {
    const target = server.address.slice('unix:'.length);
    const script = ['set pagination off', 'set confirm off', `target remote ${target}`, ...commands];
    const args = ['-nx', '-batch', ...script.flatMap((line) => ['-ex', line])];
    const { stdout, stderr } = await promisify(execFile)('gdb', args, { timeout: GDB_TIMEOUT_MS });
    return stdout + stderr;
  }

  async function entered(): Promise<void> {
    let hit = (): void => {};
    const seen = new Promise<void>((resolve) => {
      hit = resolve;
    });
    const breakpoint = await guest.breakpoints.set(ENTRY, () => hit());
    await seen;
    await breakpoint.remove();
  }

  const original = async (): Promise<number> => (await guest.vcpus[0]!.memory.readBytes(ENTRY, 1))[0]!;

  test('threads, registers and memory of a stopped guest; it runs on afterwards', async () => {
    const output = await gdb(
      'info threads',
      'printf "cs=%x cr0=%lx\\n", $cs, $cr0',
      'p/x $efer & 0x400',
      'info registers rip rflags fs_base gs_base',
      `x/4xb ${hexOf(ENTRY)}`,
      'x/1xb 0x0000400000000000',
      'info registers xmm0 fctrl',
    );
    assert.match(output, /Thread 1.*vCPU 0/, output);
    assert.match(output, /Thread 2.*vCPU 1/, output);
    assert.match(output, /cs=\w+ cr0=8\w{7}/, output);
    assert.match(output, /= 0x400/, output);
    const bytes = await guest.vcpus[0]!.memory.readBytes(ENTRY, 4);
    const shown = [...bytes].map((byte) => `0x${byte.toString(16).padStart(2, '0')}`).join('\\s+');
    assert.match(output, new RegExp(shown), output);
    assert.match(output, /Cannot access memory at address 0x400000000000/, output);
    assert.match(output, /fctrl\s+0x/, output);
    await entered();
  });

  test('a breakpoint, stepi, continue, detach', async () => {
    const before = await original();
    const output = await gdb(
      `break *${hexOf(ENTRY)}`,
      'continue',
      'printf "first=%lx\\n", $rip',
      'stepi',
      'printf "stepped=%lx\\n", $rip',
      'continue',
      'printf "second=%lx\\n", $rip',
      'detach',
    );
    const entry = ENTRY.toString(16);
    assert.match(output, new RegExp(`first=${entry}\n`), output);
    assert.match(output, new RegExp(`second=${entry}\n`), output);
    const stepped = BigInt(`0x${/stepped=(\w+)/.exec(output)?.[1] ?? '0'}`);
    assert.ok(stepped > ENTRY && stepped <= ENTRY + 15n, output);
    assert.match(output, /Inferior 1 .*detached/, output);
    assert.equal(await original(), before, 'the int3 stayed');
    await entered();
  });

  test('registers and memory are changed and changed back', async () => {
    const output = await gdb(
      `break *${hexOf(ENTRY)}`,
      'continue',
      'set $saved = $r12',
      'set $r12 = 0x1234',
      'printf "r12=%lx\\n", $r12',
      'set $r12 = $saved',
      `set $byte = *(unsigned char *)${hexOf(ENTRY)}`,
      `set *(unsigned char *)${hexOf(ENTRY)} = $byte`,
      'stepi',
      'printf "back=%d\\n", $r12 == $saved',
    );
    assert.match(output, /r12=1234\n/, output);
    assert.match(output, /back=1\n/, output);
    await entered();
  });

  test('a GDB that is killed leaves nothing behind', async () => {
    const before = await original();
    await gdb(`break *${hexOf(ENTRY)}`, 'continue', 'shell kill -9 $PPID').catch(() => {});
    await entered();
    assert.equal(await original(), before, 'the int3 stayed');
  });

  test('nothing went wrong on the way', () => {
    assert.deepEqual(errors, []);
  });
});
