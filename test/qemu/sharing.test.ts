import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, lstatSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { identityOf, offerPath } from '../../src/drivers/qemu/sharing/offer-path.ts';
import { SharedQmp } from '../../src/drivers/qemu/sharing/shared-qmp.ts';
import { UnixQmp } from '../../src/drivers/qemu/unix-qmp.ts';
import type { KvmiError } from '../../src/error.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { type Ended, KvmiProcess, kvmi, kvmiAsNobody, NOBODY, whyNoOtherUser } from '../kit/kvmi-process.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

/* Several processes of kvmi at one QMP socket, which serves one at a time. */

const FUNCTION = '__x64_sys_getuid';
const READER = join(import.meta.dirname, 'reader.js');
const AT_ONCE = 6;
const PATIENCE_MS = 60_000;

/** Resident memory of a process, in bytes. */
function residentOf(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024;
}

/** The guard of a process of kvmi. */
function guardOf(pid: number): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
  return children.find((child) => readFileSync(`/proc/${child}/cmdline`, 'utf8').includes('guard'))!;
}

/** Who offers a connection. */
async function holderAt(offer: string): Promise<number | undefined> {
  try {
    const qmp = await UnixQmp.connect(offer);
    qmp.close();
    return qmp.holder;
  } catch {
    return undefined;
  }
}

async function until(condition: () => Promise<boolean>, what: string): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; !(await condition()); ) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Sends bytes to a socket and reads nothing of what is answered. */
class Culprit {
  readonly what: string;
  readonly hungUp: Promise<void>;

  constructor(what: string, path: string, bytes: string) {
    this.what = what;
    const socket = connect(path).pause();
    socket.on('error', () => {});
    socket.write(bytes);
    // A socket that nobody reads from does not tell its end, but writing to it does.
    const timer = setInterval(() => socket.write('\n'), 100);
    this.hungUp = new Promise((resolve) => {
      socket.on('close', () => {
        clearInterval(timer);
        resolve();
      });
    });
  }
}

async function withinPatience(promise: Promise<unknown>, failure: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(failure)), PATIENCE_MS);
  });
  await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

describe('a VM that several processes use', { skip: whyNoLinuxGuest() ?? false }, () => {
  let vm: LinuxGuest;
  let target: string;
  let text: KernelText;

  before(async () => {
    vm = await LinuxGuest.boot({ smp: 2 });
    target = `qemu:${vm.qmp}`;
    text = await KernelText.of(vm);
    // The same processes all the time, which run into the breakpoint.
    await vm.run('(while true; do id -u >/dev/null; usleep 20000; done) & true');
  });
  after(() => vm?.kill());

  const ps = () => new KvmiProcess(['ps', target, '-o', 'json', '-c', 'pid,comm', '--filter', 'pid<3']);

  /** What each of them printed, which has to be the same. */
  async function allAgree(processes: readonly KvmiProcess[]): Promise<void> {
    const ended = await Promise.all(processes.map(({ ended }) => ended));
    for (const { code, stderr } of ended) assert.equal(code, EXIT.ok.code, stderr);
    const rows = ended.map(({ stdout }) => (JSON.parse(stdout) as { rows: { pid: number }[] }).rows);
    assert.deepEqual(
      rows[0]!.map(({ pid }) => pid),
      [1, 2],
    );
    for (const other of rows) assert.deepEqual(other, rows[0]);
  }

  /** Runs `use` while a breakpoint is hit again and again; the holder has ended afterwards. */
  async function whileHeld(use: (holder: KvmiProcess) => Promise<void>): Promise<Ended> {
    const holder = new KvmiProcess(['break', target, FUNCTION, '-c', 'rip']);
    try {
      await holder.seen('stdout', /rip/);
      await use(holder);
    } finally {
      holder.kill('SIGINT');
      await holder.ended;
    }
    return holder.ended;
  }

  /** The guest's clock moves, nothing is armed and its kernel's code is what it was. */
  async function unharmed(): Promise<void> {
    await vm.nextTicks(2, PATIENCE_MS);
    for (const deadline = Date.now() + PATIENCE_MS; ; ) {
      const chardevs = (await vm.monitor.execute('query-chardev')) as { label: string }[];
      if (!chardevs.some(({ label }) => label === 'gdb')) break;
      assert.ok(Date.now() < deadline, 'a gdbstub is left');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
    assert.match(await vm.run('id -u'), /^0/);
  }

  function isHeldBy(holder: KvmiProcess, { code, stderr }: Ended): void {
    assert.equal(code, EXIT.busy.code, stderr);
    assert.match(
      stderr,
      new RegExp(`held by kvmi break \\(process ${holder.child.pid}\\) \\[E_BUSY\\]\nhint: `),
    );
  }

  test(`${AT_ONCE} commands that read work at once`, async () => {
    await allAgree(Array.from({ length: AT_ONCE }, ps));
    await unharmed();
  });

  test('commands that read work while another one holds the VM, and what would hold it is told who does', async () => {
    const { code, stderr } = await whileHeld(async (holder) => {
      const before = [...holder.stdout.matchAll(/rip/g)].length;
      await allAgree(Array.from({ length: AT_ONCE }, ps));
      const others = [
        ['info', target],
        ['maps', target, '1'],
        ['symbols', target, FUNCTION],
        ['read', target, '0x1000', '16', '--physical'],
        ['read', target, 'linux_banner', '13', '--raw'],
      ].map((args) => kvmi(args));
      for (const { code, stderr } of await Promise.all(others)) assert.equal(code, EXIT.ok.code, stderr);
      assert.equal((await others.at(-1))?.stdout, 'Linux version');
      isHeldBy(holder, await kvmi(['break', target, FUNCTION]));
      isHeldBy(holder, await kvmi(['regs', target]));
      isHeldBy(holder, await kvmi(['write', target, '0x1000', '00', '--physical', '--allow-write']));
      await holder.seen('stdout', /rip/, before + 1);
    });
    assert.equal(code, EXIT.interrupted.code, stderr);
    await unharmed();
  });

  test('a holder that is stopped is named, and what is to be done about it', async () => {
    await whileHeld(async ({ child }) => {
      child.kill('SIGSTOP');
      try {
        const { code, stderr } = await kvmi(['regs', target]);
        assert.equal(code, EXIT.busy.code, stderr);
        assert.match(
          stderr,
          new RegExp(`held by kvmi break \\(process ${child.pid}\\), which is stopped \\[E_BUSY\\]`),
        );
        assert.match(stderr, new RegExp(`hint: .*kill -CONT ${child.pid}.*kill -KILL ${child.pid}`));
      } finally {
        child.kill('SIGCONT');
      }
    });
    await unharmed();
  });

  test('who only reads makes room for who wants to hold the VM, and goes on reading', async () => {
    const handler = { stop: () => ({ action: 'continue' }) as const, request: () => undefined, closed() {} };
    const reader = await openQemu({ qmp: vm.qmp });
    try {
      await whileHeld(async (holder) => {
        assert.equal(await reader.memory.read(0x1000, new Uint8Array(8)), true);
        for (const change of [
          async () => reader.attach(handler),
          async () => reader.memory.write(0x1000, new Uint8Array(8)),
        ]) {
          await assert.rejects(change, (error: KvmiError) => {
            assert.deepEqual([error.code, error.data.holder], ['E_BUSY', holder.child.pid]);
            return true;
          });
        }
      });
      await reader.attach(handler);
      await reader.detach();
    } finally {
      await reader.close();
    }
    await unharmed();
  });

  test('the holder is killed: readers go on by themselves, and the guard disarms', async () => {
    for (let round = 0; round < 3; round++) {
      const readers: KvmiProcess[] = [];
      await whileHeld(async (holder) => {
        readers.push(...Array.from({ length: AT_ONCE }, ps));
        await new Promise((resolve) => setTimeout(resolve, round * 300));
        holder.kill('SIGKILL');
      });
      await vm.nextTicks(2, PATIENCE_MS).catch(() => assert.fail(`round ${round}: the guest stands still`));
      await allAgree(readers);
      await unharmed();
    }
  });

  test('the guard gets the socket from who only reads', async () => {
    const reader = await SharedQmp.connect(vm.qmp);
    let reading = true;
    const read = async () => {
      while (reading) await reader.execute('query-status');
    };
    try {
      await whileHeld(async (holder) => {
        const all = Promise.all([read(), read()]);
        holder.kill('SIGKILL');
        await holder.ended;
        await unharmed();
        reading = false;
        await all;
      });
    } finally {
      reading = false;
      await reader.close();
    }
  });

  test('a reader that is stopped while it has the socket keeps the guard from nothing but the monitor', async () => {
    const offer = offerPath(identityOf(vm.qmp))!;
    const reader = spawn(process.execPath, [READER, vm.qmp], { stdio: ['ignore', 'pipe', 'inherit'] });
    try {
      await once(reader.stdout, 'data');
      await whileHeld(async (holder) => {
        const guard = guardOf(holder.child.pid!);
        process.kill(guard, 'SIGSTOP');
        holder.kill('SIGKILL');
        await holder.ended;
        await until(async () => (await holderAt(offer)) === reader.pid, 'the reader has the socket');
        reader.kill('SIGSTOP');
        process.kill(guard, 'SIGCONT');
        await vm.nextTicks(2, PATIENCE_MS);
        assert.deepEqual(await text.changes(vm), [], 'kernel text is as before');
      });
    } finally {
      reader.kill('SIGKILL');
    }
    await unharmed();
  });

  test('what a killed holder has left is replaced', async () => {
    const path = offerPath(identityOf(vm.qmp))!;
    writeFileSync(path, '');
    const machine = await openQemu({ qmp: vm.qmp });
    try {
      assert.equal(lstatSync(path).mode & 0o777, 0o600);
      await allAgree([ps(), ps()]);
    } finally {
      await machine.close();
    }
    assert.throws(() => lstatSync(path), { code: 'ENOENT' }, 'and the last one takes it away');
  });

  test('a QEMU that is stopped is named, and what is to be done about it', async () => {
    process.kill(vm.pid, 'SIGSTOP');
    try {
      const { code, stderr } = await kvmi(['ps', target]);
      assert.equal(code, EXIT.timeout.code, stderr);
      assert.match(stderr, new RegExp(`QEMU at .* \\(process ${vm.pid}\\) is stopped`));
      assert.match(stderr, new RegExp(`kill -CONT ${vm.pid}`));
    } finally {
      process.kill(vm.pid, 'SIGCONT');
    }
    assert.equal((await kvmi(['ps', target])).code, 0);
  });

  test('a stranger at the socket is named', async () => {
    const stranger = await UnixQmp.connect(vm.qmp);
    try {
      const [one, two] = await Promise.all([kvmi(['ps', target]), kvmi(['regs', target])]);
      for (const { code, stderr } of [one, two]) {
        assert.equal(code, EXIT.busy.code, stderr);
        assert.match(
          stderr,
          new RegExp(`in use by .*\\(process ${process.pid}\\).*\\[E_BUSY\\]\nhint: .*second -qmp`),
        );
      }
    } finally {
      stranger.close();
    }
    await allAgree([ps()]);
  });

  test('another user is not let in', { skip: whyNoOtherUser() }, async () => {
    const open = [vm.directory, vm.qmp];
    const modes = open.map((path) => statSync(path).mode);
    for (const path of open) chmodSync(path, 0o777);
    try {
      await whileHeld(async () => {
        const offer = offerPath(identityOf(vm.qmp))!;
        const knock = `require('net').connect(process.argv[1]).on('error', (e) => console.log(e.code)).on('connect', () => process.exit(console.log('in')))`;
        const { stdout } = spawnSync(process.execPath, ['-e', knock, offer], {
          encoding: 'utf8',
          uid: NOBODY,
          gid: NOBODY,
        });
        assert.equal(stdout, 'EACCES\n');
        const { code, stderr } = await kvmiAsNobody(['ps', target]);
        assert.equal(code, EXIT.busy.code, stderr);
      });
    } finally {
      open.forEach((path, i) => {
        chmodSync(path, modes[i]!);
      });
    }
    const { code, stderr } = await kvmiAsNobody(['ps', target]);
    assert.equal(code, EXIT.permission.code, stderr);
  });

  test('sharers that misbehave harm neither the holder nor the guest', async () => {
    await whileHeld(async (holder) => {
      const path = offerPath(identityOf(vm.qmp))!;
      const request = '{"execute":"query-cpus-fast","id":1}\n';
      const misdeeds: Readonly<Record<string, string>> = {
        garbage: '\0\x01{{{{\n',
        'no command': '{"id":1}\n',
        'a long line': `{"execute":"query-status",${' '.repeat(1 << 20)}"id":1}`,
        'never reading': request.repeat(50_000),
      };
      const before = residentOf(holder.child.pid!);
      const hits = [...holder.stdout.matchAll(/rip/g)].length;
      const culprits = Object.entries(misdeeds).flatMap(([what, bytes]) =>
        [1, 2, 3].map(() => new Culprit(what, path, bytes)),
      );
      await allAgree([ps(), ps()]);
      for (const { what, hungUp } of culprits) {
        await withinPatience(hungUp, `${what}: is not hung up on`);
      }
      await holder.seen('stdout', /rip/, hits + 5);
      const grown = residentOf(holder.child.pid!) - before;
      assert.ok(grown < 100 << 20, `the holder has grown by ${grown} bytes`);
      await vm.nextTicks(2, PATIENCE_MS);
    });
    await unharmed();
  });

  test('an offer carries out nothing that changes the VM', async () => {
    const machine = await openQemu({ qmp: vm.qmp });
    const sharer = await UnixQmp.connect(offerPath(identityOf(vm.qmp))!);
    try {
      assert.equal(sharer.holder, process.pid);
      await sharer.execute('query-status');
      for (const command of ['stop', 'cont', 'quit', 'system_reset', 'migrate', 'xen-save-devices-state']) {
        await assert.rejects(sharer.execute(command), /is not shared/, command);
      }
      await assert.rejects(sharer.hmp('gdbserver none'), /is not shared/);
      await assert.rejects(sharer.hmp('info status\nstop'), /is not shared/);
    } finally {
      sharer.close();
      await machine.close();
    }
    await unharmed();
  });
});
