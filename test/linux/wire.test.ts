import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/index.ts';
import { Linux } from '../../src/linux/index.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* A Linux guest seen by a tool: in the same process, and in another one, over a socket. */

const root = join(import.meta.dirname, '..', '..', '..');
const EXAMPLE = 'examples/linux/list-processes';

/** What both see the same of, while the guest is stopped. */
function gist({ pid, ppid, comm, commandLine }: Pick<ProcessLine, keyof ProcessLine>): ProcessLine {
  return { pid, ppid, comm, commandLine };
}

interface ProcessLine {
  readonly pid: number;
  readonly ppid: number;
  readonly comm: string;
  readonly commandLine: readonly string[];
}

describe('a Linux guest, from a tool', { skip: whyNoLinuxGuest(), timeout: 300_000 }, () => {
  let vm: LinuxGuest;
  let directory: string;
  let expected: ProcessLine[];
  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-wire-'));
    vm = await LinuxGuest.boot({ smp: 2, memory: 512 });
    await vm.monitor.execute('stop');
    const machine = await openQemu({ qmp: vm.qmp });
    expected = (await (await Linux.find(machine, { cache: false })).processes()).rows.map(gist);
    await machine.close();
    assert.ok(expected.length > 20, 'the machine itself leads to its processes');
  });
  after(async () => {
    await vm?.kill();
    rmSync(directory, { recursive: true, force: true });
  });

  test('in the same process', async () => {
    const machine = await openQemu({ qmp: vm.qmp });
    const guest = await introspect(machine);
    try {
      const linux = await Linux.find(guest, { cache: false });
      const { rows, reasons } = await linux.processes();
      assert.deepEqual(reasons, []);
      assert.deepEqual(rows.map(gist), expected);
    } finally {
      await guest.detach();
      await machine.close();
    }
  });

  test('in another process, over a socket', async () => {
    const address = `unix:${join(directory, 'tool')}`;
    const env = { ...process.env, XDG_CACHE_HOME: join(directory, 'cache') };
    const tool = promisify(execFile)(process.execPath, [join(root, 'dist', `${EXAMPLE}.js`), address], {
      env,
    });
    const hook = new KvmiProcess(['hook', `qemu:${vm.qmp}`, '--tool', address]);
    try {
      const { stdout, stderr } = await tool;
      const [banner, ...lines] = stdout.trimEnd().split('\n');
      assert.match(banner ?? '', /^Linux version 6\./);
      assert.deepEqual(
        lines.map((line) => gist(JSON.parse(line))),
        expected,
      );
      assert.equal(stderr, '');
    } finally {
      hook.kill('SIGKILL');
      await hook.ended;
    }
  });

  test('the how-to page shows the example', () => {
    const page = readFileSync(join(root, 'docs/how-to/look-into-a-linux-guest.md'), 'utf8');
    assert.ok(page.includes(`(../../${EXAMPLE}.ts)`));
  });
});
