import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const TOOL_KILLS = 50;
const HOST_KILLS = 20;
const START_TIMEOUT = 20_000;
const PATIENCE = 10_000;
const FUNCTION = '__x64_sys_getuid';

/** A child whose first line `word` is waited for. */
async function start(script: string, args: readonly string[], word: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [join(import.meta.dirname, script), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface(child.stdout!);
  const seen = (async () => {
    for await (const line of lines) if (line === word) return;
    throw new Error(`${script} ended without saying "${word}"`);
  })();
  await within(START_TIMEOUT, seen, `${script} to say "${word}"`);
  child.stdout!.resume();
  return child;
}

async function within(milliseconds: number, promise: Promise<unknown>, what: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${milliseconds} ms for ${what}`)), milliseconds);
  });
  await Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

async function kill(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

/** A moment between 0 and `limit` ms, spread evenly over the rounds. */
function moment(round: number, rounds: number, limit: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, (limit * round) / rounds));
}

describe('a guest survives whoever is killed', { skip: whyNoLinuxGuest() ?? false, timeout: 180_000 }, () => {
  let vm: LinuxGuest;
  let text: KernelText;
  let gva: string;

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    const symbols = await symbolsOf(vm, [FUNCTION]);
    gva = `0x${symbols[FUNCTION]!.toString(16)}`;
    text = await KernelText.of(vm);
    // something that runs into the breakpoint all the time
    await vm.run('(while true; do id -u >/dev/null; done) & (while true; do id -u >/dev/null; done) &');
  });
  after(() => vm?.kill());

  async function hasStub(): Promise<boolean> {
    const devices = (await vm.monitor.execute('query-chardev')) as { label: string }[];
    return devices.some(({ label }) => label === 'gdb');
  }

  /** The VM runs again, and the clock on its serial console advances. How soon is measured by a benchmark. */
  async function expectUnharmed(when: string): Promise<void> {
    const deadline = performance.now() + PATIENCE;
    const runs = async () => ((await vm.monitor.execute('query-status')) as { running: boolean }).running;
    while (!(await runs())) {
      assert.ok(performance.now() < deadline, `${when}: the VM stands still`);
    }
    await vm.nextTicks(1).catch(() => assert.fail(`${when}: the guest's clock stands still`));
  }

  test(`the tool is killed at ${TOOL_KILLS} moments`, async () => {
    const socket = join(vm.directory, 'tool.sock');
    const hostArgs = [vm.qmp, `unix:${socket}`];
    let tool = spawn(
      process.execPath,
      [join(import.meta.dirname, 'tool-process.js'), `unix:${socket}`, gva],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    const host = await start('host-process.js', hostArgs, 'serving');
    try {
      for (let round = 0; round < TOOL_KILLS; round++) {
        await moment(round, TOOL_KILLS, 600);
        await kill(tool);
        await expectUnharmed(`tool killed, round ${round}`);
        tool = spawn(
          process.execPath,
          [join(import.meta.dirname, 'tool-process.js'), `unix:${socket}`, gva],
          {
            stdio: ['ignore', 'pipe', 'inherit'],
          },
        );
      }
    } finally {
      await kill(tool);
      await kill(host);
    }
    await expectUnharmed('at the end');
    assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
  });

  test(`the host side is killed at ${HOST_KILLS} moments`, async () => {
    const socket = join(vm.directory, 'tool2.sock');
    const tool = spawn(
      process.execPath,
      [join(import.meta.dirname, 'tool-process.js'), `unix:${socket}`, gva],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    try {
      for (let round = 0; round < HOST_KILLS; round++) {
        const host = await start('host-process.js', [vm.qmp, `unix:${socket}`], 'serving');
        await moment(round, HOST_KILLS, 800);
        await kill(host);
        await expectUnharmed(`host side killed, round ${round}`);
      }
    } finally {
      await kill(tool);
    }
    await expectUnharmed('at the end');
    assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
    const deadline = performance.now() + PATIENCE;
    while (await hasStub()) assert.ok(performance.now() < deadline, 'a gdbserver is left');
  });
});
