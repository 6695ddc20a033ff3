import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { commandLine, processes, readText } from '../../src/system/proc.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { Libvirt, whyNoLibvirt } from '../kit/libvirt.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* What may happen to a domain of libvirt, and to kvmi, while it is hooked. */

const NAME = `kvmi-hooked-${process.pid}`;
/** The guest's clock on the console calls it ten times a second. */
const SYMBOL = '__x64_sys_write';
const PATIENCE_MS = 60_000;

const SIGNALS = [
  ['SIGINT', EXIT.interrupted.code],
  ['SIGTERM', EXIT.terminated.code],
  ['SIGHUP', EXIT.terminated.code],
] as const;

describe('a hooked libvirt domain', { skip: whyNoLinuxGuest() ?? whyNoLibvirt() ?? false }, () => {
  let libvirt: Libvirt;
  let environment: Record<string, string>;
  /** The first bytes at the symbol before anything was hooked. */
  let original: string;

  before(async () => {
    libvirt = await Libvirt.start();
    environment = { LIBVIRT_DEFAULT_URI: libvirt.uri };
    await libvirt.virsh('define', libvirt.describeLinuxGuest(NAME));
    await libvirt.virsh('start', NAME);
    await ticking('after the start');
    original = await bytesAtSymbol();
    assert.match(original, /^[0-9a-f]{16}$/);
  });
  after(async () => {
    await libvirt?.virsh('destroy', NAME).catch(() => {});
    await libvirt?.stop();
  });

  function ticks(): number {
    const console = join(libvirt.directory, 'console');
    return existsSync(console) ? [...readFileSync(console, 'latin1').matchAll(/^tick /gm)].length : 0;
  }

  async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
    for (const deadline = Date.now() + PATIENCE_MS; !(await condition()); ) {
      assert.ok(Date.now() < deadline, what);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async function ticking(when: string): Promise<void> {
    const before = ticks();
    await until(() => ticks() > before + 1, `${when}: the guest's clock stands still`);
  }

  async function bytesAtSymbol(): Promise<string> {
    const { code, stdout, stderr } = await kvmi(
      ['read', `libvirt:${NAME}`, SYMBOL, '8', '--hex'],
      environment,
    );
    assert.equal(code, EXIT.ok.code, stderr);
    return stdout.trim();
  }

  /** A command that has met the breakpoint a few times. */
  async function breaking(): Promise<KvmiProcess> {
    const args = ['break', `libvirt:${NAME}`, SYMBOL, '-o', 'jsonl'];
    const command = new KvmiProcess(args, environment, undefined, true);
    await command.seen('stdout', /rip/, 3);
    return command;
  }

  /** Processes of virsh that work for this test. */
  function virshs(): number[] {
    return processes().filter(
      (pid) =>
        /virsh$/.test(commandLine(pid)[0] ?? '') &&
        readText(`/proc/${pid}/environ`)?.includes(libvirt.directory),
    );
  }

  async function unharmed(when: string): Promise<void> {
    await until(() => virshs().length === 0, `${when}: virsh is left`);
    await until(
      async () => (await libvirt.virsh('domstate', NAME)) === 'running',
      `${when}: it does not run`,
    );
    await until(async () => {
      const devices = await libvirt.virsh('qemu-monitor-command', NAME, '{"execute":"query-chardev"}');
      return !devices.includes('"label":"gdb"');
    }, `${when}: a gdbstub is left`);
    await ticking(when);
    assert.equal(await bytesAtSymbol(), original, `${when}: the code is not as it was`);
  }

  for (const [signal, code] of SIGNALS) {
    test(`${signal} to the whole process group: the domain runs on, and nothing is left`, async () => {
      const command = await breaking();
      command.killGroup(signal);
      assert.equal((await command.ended).code, code, command.stderr);
      assert.match(command.stderr, /the probe is removed/);
      await unharmed(signal);
    });
  }

  test('a second Ctrl-C tells what is still being undone', async () => {
    const command = await breaking();
    const daemon = libvirt.pid;
    process.kill(daemon, 'SIGSTOP');
    try {
      command.killGroup('SIGINT');
      await command.seen('stderr', /the probe is removed/);
      command.killGroup('SIGINT');
      await command.seen('stderr', /still letting go of/);
    } finally {
      process.kill(daemon, 'SIGCONT');
    }
    assert.equal((await command.ended).code, EXIT.interrupted.code, command.stderr);
    await unharmed('a second Ctrl-C');
  });

  test('kvmi is killed: virsh ends, and the domain runs on', async () => {
    const command = await breaking();
    command.kill('SIGKILL');
    await command.ended;
    await unharmed('SIGKILL');
  });

  test("libvirt's daemon is started anew: kvmi goes on", async () => {
    const command = await breaking();
    await libvirt.restart();
    const { length } = [...command.stdout.matchAll(/rip/g)];
    await command.seen('stdout', /rip/, length + 3);
    command.killGroup('SIGINT');
    assert.equal((await command.ended).code, EXIT.interrupted.code, command.stderr);
    assert.match(command.stderr, /the probe is removed/);
    await unharmed('the restart');
  });

  test('it is saved by libvirt: kvmi ends and says so, and the domain goes on later', async () => {
    const command = await breaking();
    await libvirt.virsh('managedsave', NAME);
    assert.equal((await command.ended).code, EXIT.error.code, command.stderr);
    assert.match(command.stderr, /the VM ended/);
    assert.equal(await libvirt.virsh('domstate', NAME), 'shut off');
    await libvirt.virsh('start', NAME);
    await unharmed('managed save');
  });

  test('it is destroyed: kvmi ends and says so', async () => {
    const command = await breaking();
    await libvirt.virsh('destroy', NAME);
    assert.equal((await command.ended).code, EXIT.error.code, command.stderr);
    assert.match(command.stderr, /the VM ended/);
    assert.doesNotMatch(command.stderr, /the probe is removed/);
    await until(() => virshs().length === 0, 'virsh is left');
  });
});
