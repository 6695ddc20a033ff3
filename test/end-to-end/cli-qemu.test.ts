import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { UnixQmp } from '../../src/drivers/qemu/unix-qmp.ts';
import { listen } from '../../src/tool/index.ts';
import { KernelText, symbolsOf } from '../kit/kernel-text.ts';
import { KvmiProcess, kvmi, kvmiAsNobody, whyNoOtherUser } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* The command line on a Debian guest under QEMU. */

const FUNCTION = '__x64_sys_getuid';

interface Document {
  readonly rows: Record<string, unknown>[];
}

describe('kvmi with QEMU', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let target: string;
  let symbols: Record<string, bigint>;
  let text: KernelText;
  const directory = mkdtempSync(join(tmpdir(), 'kvmi-cli-qemu-'));

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    target = `qemu:${vm.qmp}`;
    symbols = await symbolsOf(vm, [FUNCTION, 'linux_banner', '_text']);
    text = await KernelText.of(vm);
  });
  after(async () => {
    await vm?.kill();
    rmSync(directory, { recursive: true, force: true });
  });

  /** Runs `use` while the VM is hooked to this process; whatever comes of it, it is not hooked any more afterwards. */
  async function whileHooked(use: () => Promise<void>): Promise<void> {
    const server = await listen(`unix:${join(directory, 'tool')}`);
    const hook = new KvmiProcess(['hook', target, '--tool', server.address]);
    try {
      const { value: guest } = await server[Symbol.asyncIterator]().next();
      await use();
      await guest!.detach();
      assert.equal((await hook.ended).code, EXIT.ok.code);
    } finally {
      hook.kill('SIGTERM');
      await hook.ended;
      await server.close();
    }
  }

  async function json(args: readonly string[]): Promise<Record<string, unknown>[]> {
    const { code, stdout, stderr } = await kvmi([...args, '-o', 'json']);
    assert.equal(code, EXIT.ok.code, stderr);
    return (JSON.parse(stdout) as Document).rows;
  }

  /** The guest's clock moves and its kernel's code is what it was. */
  async function unharmed(): Promise<void> {
    await vm.nextTicks(2);
    assert.deepEqual(await text.changes(vm), []);
  }

  test('list: finds the VM, and every way to name it leads there', async () => {
    const rows = await json(['list', '--filter', `pid=${vm.pid}`]);
    assert.equal(rows.length, 1);
    const { name, vcpus, memory, accelerator, target: found, reason } = rows[0]!;
    assert.deepEqual([name, vcpus, memory, accelerator], ['kvmi-test', 2, 256 << 20, 'tcg']);
    assert.deepEqual([found, reason], [target, null], 'the socket that the test uses itself is passed over');
    assert.equal((await json(['info', String(vm.pid)]))[0]?.value, 'kvmi-test');
  });

  /** What `list` and `doctor` say of the VM, and how naming it ends. */
  async function toldOf(pid: number) {
    const [row] = await json(['list', '--filter', `pid=${pid}`]);
    const [finding] = await json(['doctor', '--filter', `about~^${pid} `]);
    const { code, stderr } = await kvmi(['regs', String(pid)]);
    return { row: row!, finding: finding!, code, stderr };
  }

  test('list and doctor: a VM that another kvmi holds', async () => {
    await whileHooked(async () => {
      const { row, finding, code, stderr } = await toldOf(vm.pid);
      assert.deepEqual([row.target, row.reason], [target, null], 'it can be read');
      assert.equal(finding.severity, 'ok');
      assert.equal(code, EXIT.busy.code);
      assert.match(stderr, /held by kvmi hook \(process \d+\) \[E_BUSY\]\nhint: /);
      assert.equal((await json(['info', String(vm.pid)]))[0]?.value, 'kvmi-test');
    });
  });

  test('list and doctor: a VM whose QMP socket something else uses', async () => {
    const stranger = await UnixQmp.connect(vm.qmp);
    try {
      const { row, finding, code, stderr } = await toldOf(vm.pid);
      assert.deepEqual([row.target, Object.hasOwn(row, 'blocked')], [null, false]);
      assert.match(String(row.reason), /in use/);
      assert.equal(finding.severity, 'warning');
      assert.match(String(finding.remedy), /second -qmp/);
      assert.equal(code, EXIT.busy.code);
      assert.match(stderr, /in use.*\[E_BUSY\]\nhint: .*second -qmp/);
    } finally {
      stranger.close();
    }
  });

  test('list and doctor: a VM whose QMP sockets belong to another user', {
    skip: whyNoOtherUser(),
  }, async () => {
    const { code, stderr } = await kvmiAsNobody(['ps', String(vm.pid)]);
    assert.equal(code, EXIT.permission.code, stderr);
    assert.match(stderr, /hint: .*as root/);
    const { stdout } = await kvmiAsNobody(['doctor', '-o', 'json', '--filter', `about~^${vm.pid} `]);
    const [finding] = (JSON.parse(stdout) as Document).rows;
    assert.match(String(finding?.remedy), /as root/);
  });

  test('a hostile name does not reach the terminal as it is', async () => {
    const hostile = await LinuxGuest.boot({ paused: true, args: ['-name', 'x\x1b]0;pwned\x07\u202e'] });
    try {
      for (const args of [
        ['list'],
        ['list', '-o', 'csv'],
        ['list', '-o', 'json'],
        ['doctor'],
        ['regs', '-'],
      ]) {
        const { stdout, stderr } = await kvmi(args);
        assert.doesNotMatch(stdout + stderr, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]/, args.join(' '));
      }
    } finally {
      await hostile.kill();
    }
  });

  test('info: name, memory map, capabilities with reasons', async () => {
    const rows = await json(['info', target]);
    const found = (name: string) => rows.find((row) => row.name === name);
    assert.equal(found('name')?.value, 'kvmi-test');
    assert.equal(found('vcpus')?.value, 2);
    const memory = rows.filter((row) => row.section === 'memory');
    const total = memory.reduce((sum, row) => sum + Number(row.value), 0);
    assert.ok(total >= 255 << 20, `${total} bytes`);
    assert.equal(found('breakpoint')?.value, true);
    assert.equal(found('views')?.value, false);
    assert.notEqual(found('views')?.note, null);
    await unharmed();
  });

  test('regs: both vCPUs run the kernel or the shell with paging on', async () => {
    const rows = await json(['regs', target, '--vcpu', 'all', '--all']);
    const cr0 = rows.filter((row) => row.register === 'cr0');
    assert.equal(cr0.length, 2);
    for (const { meaning } of cr0) assert.match(String(meaning), /PE .*PG/);
    await unharmed();
  });

  test('read: the banner of the kernel', async () => {
    for (const place of [`0x${symbols.linux_banner!.toString(16)}`, 'linux_banner']) {
      const { stdout, stderr } = await kvmi(['read', target, place, '13', '--raw']);
      assert.equal(stdout, 'Linux version', stderr);
    }
  });

  test('break: hits while the guest calls the function; afterwards its code is as before', async () => {
    const address = `0x${symbols[FUNCTION]!.toString(16)}`;
    const process = new KvmiProcess(['break', target, FUNCTION, '-n', '3', '-v', '-c', 'vcpu,rip']);
    await process.seen('stderr', /waiting at/);
    await vm.run('for i in 1 2 3; do id -u; done >/dev/null');
    const { code, stdout, stderr } = await process.ended;
    assert.equal(code, EXIT.ok.code, stderr);
    const rips = stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { rip: string }).rip);
    assert.deepEqual(rips, [address, address, address]);
    await unharmed();
    assert.equal(await vm.run('id -u'), '0\n');
  });

  test('break: Ctrl-C under fire leaves the guest unharmed', async () => {
    const address = `0x${symbols[FUNCTION]!.toString(16)}`;
    const process = new KvmiProcess(['break', target, address]);
    const load = vm.run('for i in $(seq 40); do id -u; done | wc -l');
    await process.seen('stdout', /rip/, 3);
    process.kill('SIGINT');
    assert.equal((await process.ended).code, EXIT.interrupted.code);
    assert.equal(await load, '40\n');
    await unharmed();
  });

  test('hook: the end of the VM ends it', async () => {
    const address = `unix:${join(directory, 'end')}`;
    const server = await listen(address);
    const doomed = await LinuxGuest.boot({});
    const hook = new KvmiProcess(['hook', `qemu:${doomed.qmp}`, '--tool', address, '--reconnect', '0.1']);
    try {
      const { value: guest } = await server[Symbol.asyncIterator]().next();
      await guest!.vcpus[0]!.registers();
      doomed.process.kill('SIGKILL');
      const { code, stderr } = await hook.ended;
      assert.equal(code, EXIT.ok.code, stderr);
      assert.match(stderr, /unhooked: the VM is gone/);
    } finally {
      hook.kill('SIGKILL');
      await server.close();
      await doomed.kill();
    }
  });
});
