import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { removeWorkspace, WORKSPACE_PREFIX } from '../../src/drivers/qemu/workspace.ts';
import { loadKoffi } from '../../src/system/koffi.ts';
import { TestHandler } from '../kit/handler.ts';
import { NOBODY, whyNoOtherUser } from '../kit/kvmi-process.ts';

/* kvmi runs as root; the VMM as another user, and its guest has taken it over. */

const SIZE = 1 << 20;
const PAGE = 4096;
/** More than what is read before a file is mapped. */
const MUCH = 300;

function whyNot(): string | false {
  try {
    loadKoffi();
  } catch {
    return 'needs koffi';
  }
  return whyNoOtherUser();
}

/** A VMM of a user who may nothing. */
class FakeVmm {
  readonly socket: string;
  readonly child: ChildProcess;
  readonly #lines: Interface;

  private constructor(socket: string, child: ChildProcess) {
    this.socket = socket;
    this.child = child;
    this.#lines = createInterface(child.stdout!);
  }

  static async start(directory: string, name: string, plan: object): Promise<FakeVmm> {
    const socket = join(directory, `${name}.qmp`);
    const script = join(import.meta.dirname, 'fake-vmm.js');
    const child = spawn(join(directory, 'qemu-system-x86_64'), [script, socket, JSON.stringify(plan)], {
      stdio: ['pipe', 'pipe', 'inherit'],
      uid: NOBODY,
      gid: NOBODY,
    });
    const vmm = new FakeVmm(socket, child);
    await once(vmm.#lines, 'line');
    return vmm;
  }

  async tell(word: string): Promise<void> {
    const done = once(this.#lines, 'line');
    this.child.stdin!.write(`${word}\n`);
    await done;
  }

  async end(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exit = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exit;
  }
}

describe('a VMM that was taken over', { skip: whyNot() }, () => {
  const vmms: FakeVmm[] = [];
  let directory: string;
  /** What the VMM may only read, or not even that. */
  let precious: string;

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-hostile-'));
    chmodSync(directory, 0o777);
    try {
      linkSync(process.execPath, join(directory, 'qemu-system-x86_64'));
    } catch {
      copyFileSync(process.execPath, join(directory, 'qemu-system-x86_64'));
    }
    mkdirSync(join(directory, 'rooms'));
    precious = join(directory, 'rooms', 'precious');
    writeFileSync(precious, Buffer.alloc(SIZE, 0x11), { mode: 0o644 });
  });
  after(async () => {
    for (const vmm of vmms) await vmm.end();
    rmSync(directory, { recursive: true, force: true });
  });

  async function start(name: string, plan: object): Promise<FakeVmm> {
    const vmm = await FakeVmm.start(directory, name, plan);
    vmms.push(vmm);
    return vmm;
  }

  /** Memory of its own, of a kind that knows no seals. */
  function ownFile(name: string): string {
    const path = join('/dev/shm', `kvmi-test-${process.pid}-${name}`);
    writeFileSync(path, Buffer.alloc(SIZE, 0x22));
    chownSync(path, NOBODY, NOBODY);
    return path;
  }

  function workspaces(): string[] {
    return readdirSync('/dev/shm').filter((name) => name.startsWith(WORKSPACE_PREFIX));
  }

  test('a file that it may only read is read, and not written', async () => {
    const vmm = await start('readonly', { ram: precious, readOnly: true });
    const machine = await openQemu({ qmp: vmm.socket });
    const bytes = new Uint8Array(16);
    assert.match(machine.memoryAccess.join(), /shared memory/);
    assert.equal(await machine.memory.read(0, bytes), true);
    assert.deepEqual(bytes, new Uint8Array(16).fill(0x11));
    await Promise.resolve(machine.memory.write(0, Uint8Array.of(0xff))).catch(() => {});
    await machine.close();
    assert.equal(readFileSync(precious)[0], 0x11, 'the file is as it was');
  });

  test('a file of its own is written', async (t) => {
    const ram = ownFile('own');
    t.after(() => rmSync(ram));
    const vmm = await start('own', { ram });
    const machine = await openQemu({ qmp: vmm.socket });
    assert.equal(await machine.memory.write(5, Uint8Array.of(0xff)), true);
    await machine.close();
    assert.equal(readFileSync(ram)[5], 0xff);
  });

  test('its memory shrinks while it is read: reads fail, and nothing else', async (t) => {
    const ram = ownFile('shrinking');
    t.after(() => rmSync(ram));
    const vmm = await start('shrinking', { ram });
    const machine = await openQemu({ qmp: vmm.socket });
    const bytes = new Uint8Array(SIZE);
    for (let i = 0; i < MUCH; i++) assert.equal(await machine.memory.read(0, bytes), true);
    await vmm.tell('shrink');
    assert.equal(await machine.memory.read(0, bytes), false);
    await machine.close();
  });

  test('it names the vCPU threads of another VM: that is neither read nor ended', async (t) => {
    const ram = ownFile('other');
    t.after(() => rmSync(ram));
    const other = await start('other', { ram });
    const vmm = await start('liar', { thread: other.child.pid, address: 0x10000, save: 'honest' });
    const machine = await openQemu({ qmp: vmm.socket });
    assert.match(machine.memoryAccess.join(), /monitor/);
    assert.equal(typeof machine.capabilities.crash, 'string');
    assert.throws(() => machine.kill(), { code: 'E_UNSUPPORTED' });
    await machine.close();
    assert.equal(other.child.signalCode, null);
    // What is known of it is asked of the kernel: with its own thread it is found.
    const honest = await openQemu({ qmp: other.socket });
    assert.equal(honest.capabilities.crash, true);
    await honest.close();
  });

  test('it puts the gdbstub of another VM in place of its own: nothing is sent there', async (t) => {
    const stub = join(directory, 'stub');
    const received: Buffer[] = [];
    const server = createServer((socket) => socket.on('data', (chunk) => received.push(chunk)));
    t.after(() => server.close());
    server.listen(stub);
    await once(server, 'listening');
    chmodSync(stub, 0o777);
    const vmm = await start('stub', { stub });
    const machine = await openQemu({ qmp: vmm.socket });
    await machine.attach(new TestHandler());
    await assert.rejects(() => machine.arm({ kind: 'breakpoint', vcpu: machine.vcpus[0]! }), {
      code: 'E_GDB_CONNECT',
    });
    await machine.close();
    assert.equal(Buffer.concat(received).toString(), '');
  });

  test('it writes more than it was asked for: that is not read', async () => {
    const vmm = await start('huge', { save: 'huge' });
    const machine = await openQemu({ qmp: vmm.socket });
    await assert.rejects(async () => machine.memory.read(0, new Uint8Array(PAGE)), { code: 'E_QEMU_STATE' });
    await machine.close();
  });

  test('it replaces the file that it is to write: no link is followed', async () => {
    const vmm = await start('link', { save: 'link', victim: '/dev/zero' });
    const machine = await openQemu({ qmp: vmm.socket });
    assert.equal(await machine.memory.read(0, new Uint8Array(PAGE)), false);
    await machine.close();
  });

  test('it fills its directory: what it put there stays, and so does what its links lead to', async (t) => {
    const before = new Set(workspaces());
    const vmm = await start('litter', { save: 'litter', victim: precious });
    const machine = await openQemu({ qmp: vmm.socket });
    const bytes = new Uint8Array(PAGE);
    assert.equal(await machine.memory.read(0, bytes), true);
    assert.equal(bytes[0], 0x5a);
    const [workspace] = workspaces()
      .filter((name) => !before.has(name))
      .map((name) => join('/dev/shm', name))
      .filter((path) => existsSync(join(path, 'sockets', 'deep')));
    assert.ok(workspace, 'the VMM could write there');
    t.after(() => rmSync(workspace, { recursive: true }));
    assert.equal(statSync(workspace).uid, 0, 'it belongs to root');
    await machine.close();
    assert.deepEqual(readdirSync(workspace), ['sockets'], 'what kvmi made is gone');
    assert.deepEqual(readdirSync(join(workspace, 'sockets')).sort(), ['deep', 'linked']);
    assert.ok(existsSync(join(workspace, 'sockets', 'deep', 'file')), 'no directory is entered');
    assert.ok(existsSync(precious));
  });

  test('a workspace whose name leads elsewhere is left alone', () => {
    const elsewhere = join(directory, 'elsewhere');
    mkdirSync(join(elsewhere, 'sockets'), { recursive: true });
    writeFileSync(join(elsewhere, '0'), '');
    writeFileSync(join(elsewhere, 'sockets', 'gdb'), '');
    const link = join(directory, 'link');
    symlinkSync(elsewhere, link);
    removeWorkspace(link);
    assert.ok(lstatSync(link).isSymbolicLink());
    chownSync(elsewhere, NOBODY, NOBODY);
    removeWorkspace(elsewhere);
    assert.ok(existsSync(join(elsewhere, '0')), 'a directory of somebody else');
    assert.ok(existsSync(join(elsewhere, 'sockets', 'gdb')));
  });
});
