import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { inspect } from 'node:util';
import { dumpMemory, openSnapshot, verifyDump } from '../../src/drivers/snapshot/index.ts';
import { type Baseline, Linux, readKernelFile, typesFromFile } from '../../src/linux/index.ts';
import { translate, writeVirtual } from '../../src/machine/index.ts';
import { debianKernel } from '../kit/debian-kernel.ts';
import { type BusyGuest, bootBusyGuest, shutDown, whyNot } from './guest-kit.ts';

for (const series of ['6.1', '6.12'] as const) {
  describe(`integrity of a Debian ${series} guest`, { skip: whyNot(series), timeout: 600_000 }, () => {
    let busy: BusyGuest;
    let linux: Linux;
    let baseline: Baseline;

    before(async () => {
      busy = await bootBusyGuest(series);
      linux = await Linux.find(busy.memory, { cache: false });
      baseline = await linux.baseline();
    });
    after(() => shutDown(busy));

    async function write(address: bigint, bytes: Uint8Array): Promise<void> {
      assert.ok(
        await writeVirtual(busy.memory, linux.kernel.paging, address, bytes),
        'the guest can be written',
      );
    }

    async function read(address: bigint, size: number): Promise<Uint8Array> {
      const bytes = new Uint8Array(size);
      const gpa = await translate(busy.memory, linux.kernel.paging, address);
      assert.ok(gpa !== undefined && (await busy.memory.read(gpa, bytes)));
      return bytes;
    }

    /** Changes kernel memory with the guest stopped, checks, and takes the change back. */
    async function whileChanged(
      address: bigint,
      bytes: Uint8Array,
      look: () => Promise<void>,
    ): Promise<void> {
      await busy.guest.monitor.execute('stop');
      const before = await read(address, bytes.length);
      try {
        await write(address, bytes);
        await look();
      } finally {
        await write(address, before);
        await busy.guest.monitor.execute('cont');
      }
    }

    test('nothing is found in a guest that is well, under load', async () => {
      const storm = 'while [ -e /tmp/storm ]; do (true | true); ls -R /proc/self >/dev/null 2>&1; done';
      await busy.guest.run(`touch /tmp/storm; (${storm}) >/dev/null 2>&1 &`);
      try {
        for (let i = 0; i < 5; i++) assert.deepEqual((await linux.check({ baseline })).rows, []);
      } finally {
        await busy.guest.run('rm -f /tmp/storm');
      }
    });

    test('changed code is found', async () => {
      const address = linux.symbols.require('ksys_read') + 0x20n;
      const changed = (await read(address, 2)).map((byte) => byte ^ 0xff);
      await whileChanged(address, changed, async () => {
        const { rows } = await linux.check({ baseline });
        const finding = rows.find(({ subject }) => subject === 'ksys_read+0x20');
        assert.equal(finding?.check, 'text');
        assert.equal(finding?.found, Buffer.from(changed).toString('hex'));
      });
    });

    test("the running code is that of the kernel's vmlinux, but for what is patched", async () => {
      const kernel = debianKernel(series);
      assert.ok(typeof kernel !== 'string');
      const vmlinux = await readKernelFile(kernel.image);
      assert.deepEqual((await linux.check({ vmlinux })).rows, []);
      const address = linux.symbols.require('ksys_read') + 0x20n;
      const changed = (await read(address, 2)).map((byte) => byte ^ 0xff);
      await whileChanged(address, changed, async () => {
        const { rows } = await linux.check({ vmlinux });
        assert.deepEqual(
          rows.map(({ check, subject }) => [check, subject]),
          [['text', 'ksys_read+0x20']],
        );
      });
      const typed = await Linux.find(busy.memory, { types: await typesFromFile(kernel.image) });
      const pids = async (from: Linux) =>
        (await from.processes()).rows.map(({ pid }) => pid).filter((pid) => pid < 100);
      assert.deepEqual(await pids(typed), await pids(linux));
    });

    test('a call that leads out of the kernel is found without a baseline', async () => {
      // The place for ftrace at the start of the function, behind what was endbr64: a call to foreign memory.
      const start = linux.symbols.require('vfs_read');
      const isFirst = ['0f1f440000', '6666666690'].includes(
        Buffer.from(await read(start, 5)).toString('hex'),
      );
      const address = isFirst ? start : start + 4n;
      await whileChanged(address, Uint8Array.of(0xe8, 0, 0, 0, 0x10), async () => {
        const { rows } = await linux.check();
        assert.deepEqual(
          rows.map(({ check, subject }) => [check, subject]),
          [['text', address === start ? 'vfs_read' : 'vfs_read+0x4']],
        );
      });
    });

    test('a system call that leads elsewhere is found', async () => {
      const address = linux.symbols.require('sys_call_table') + 8n * 2n;
      const target = new Uint8Array(8);
      new DataView(target.buffer).setBigUint64(0, linux.symbols.require('commit_creds'), true);
      await whileChanged(address, target, async () => {
        const { rows } = await linux.check();
        assert.deepEqual(
          rows.map(({ check, subject, found }) => [check, subject, found]),
          [['syscall', 'sys_call_table[2]', 'commit_creds']],
        );
      });
    });

    test('an interrupt that leads elsewhere is found', async () => {
      const address = linux.symbols.require('idt_table') + 16n * 0x80n;
      const gate = await read(address, 16);
      gate.set([0, 0, 0xff, 0xff], 8);
      gate[7] = 0x80;
      await whileChanged(address, gate, async () => {
        const { rows } = await linux.check();
        assert.deepEqual(
          rows.map(({ check, subject }) => [check, subject]),
          [['interrupt', 'vector 128']],
        );
      });
    });

    test('a process taken out of the list of tasks is found', async () => {
      const row = (await linux.processes()).rows.find(({ comm }) => comm === 'program')!;
      const { offset } = linux.kernel.layouts.field('task', 'tasks');
      const link = row.address + BigInt(offset);
      await busy.guest.monitor.execute('stop');
      const view = new DataView((await read(link, 16)).buffer);
      const [next, prev] = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
      const pointer = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer);
      try {
        await write(prev, pointer(next));
        await write(next + 8n, pointer(prev));
        assert.equal(
          (await linux.processes()).rows.find(({ pid }) => pid === row.pid),
          undefined,
        );
        const findings = (await linux.check()).rows.filter(({ check }) => check === 'hidden-process');
        assert.ok(
          findings.some(
            ({ subject, address }) => subject === `${row.pid} program` && address === row.address,
          ),
          inspect(findings),
        );
      } finally {
        await write(prev, pointer(link));
        await write(next + 8n, pointer(link));
        await busy.guest.monitor.execute('cont');
      }
    });

    test('a process that is in no table at all is found in memory', async () => {
      const row = (await linux.processes()).rows.find(({ comm }) => comm === 'program')!;
      const { layouts } = linux.kernel;
      const task = row.address;
      const link = task + BigInt(layouts.field('task', 'tasks').offset);
      const { address: pidAddress } = (await linux.print(`(task_struct)${row.address}.thread_pid->tasks`))
        .rows[0]!;
      await busy.guest.monitor.execute('stop');
      const view = new DataView((await read(link, 16)).buffer);
      const [next, prev] = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
      const pointer = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer);
      const first = await read(BigInt(pidAddress), 8);
      try {
        await write(prev, pointer(next));
        await write(next + 8n, pointer(prev));
        await write(BigInt(pidAddress), pointer(0n));
        const findings = (await linux.check()).rows;
        const finding = findings.find(({ address }) => address === row.address);
        assert.equal(finding?.found, 'only in memory', inspect(findings));
      } finally {
        await write(prev, pointer(link));
        await write(next + 8n, pointer(link));
        await write(BigInt(pidAddress), first);
        await busy.guest.monitor.execute('cont');
      }
    });

    test('a module taken out of the list of modules is found', async () => {
      const head = linux.symbols.require('modules');
      await busy.guest.monitor.execute('stop');
      const saved = await read(head, 8);
      const first = new DataView(saved.buffer).getBigUint64(0, true);
      const second = await read(first, 8);
      try {
        await write(head, second);
        const findings = (await linux.check()).rows;
        assert.deepEqual(
          findings.map(({ check, subject }) => [check, subject]),
          [['hidden-module', 'garp']],
        );
      } finally {
        await write(head, saved);
        await busy.guest.monitor.execute('cont');
      }
    });

    test('rights that grow in place are found', async () => {
      await busy.guest.run(
        '/program as-user >/dev/null 2>&1 & until grep -q "^Uid:.1000" /proc/$!/status; do sleep 0.1; done',
      );
      const row = (await linux.processes()).rows.find(({ uid, comm }) => uid === 1000 && comm === 'program');
      assert.ok(row !== undefined, 'there is a process of another user');
      const before = await linux.baseline();
      const cred = (await linux.print(`(task_struct)${row.address}.cred->euid`)).rows[0]!;
      await whileChanged(cred.address, Uint8Array.of(0, 0, 0, 0), async () => {
        const { rows } = await linux.check({ baseline: before });
        assert.deepEqual(
          rows.map(({ check, subject }) => [check, subject]),
          [['credentials', `${row.pid} program`]],
        );
      });
      assert.deepEqual((await linux.check({ baseline: before })).rows, []);
    });

    test('dumps of the guest give the same rows', async () => {
      const directory = mkdtempSync(join(tmpdir(), 'kvmi-dumps-'));
      await busy.guest.monitor.execute('stop');
      try {
        const rows = async (from: Linux) => [
          (await from.processes()).rows,
          (await from.sockets()).rows,
          (await from.files()).rows,
          (await from.mounts()).rows,
          (await from.modules()).rows,
          (await from.log()).rows,
        ];
        const expected = await rows(linux);
        for (const format of ['elf', 'raw', 'lime'] as const) {
          const file = join(directory, `own.${format}`);
          await dumpMemory({ memory: busy.memory }, file, { format });
          assert.equal(statSync(file).mode & 0o777, 0o600, 'nobody else may read it');
          assert.deepEqual(await verifyDump(file), []);
        }
        for (const format of ['elf', 'kdump-zlib']) {
          const protocol = `file:${join(directory, `qemu.${format}`)}`;
          await busy.guest.monitor.execute('dump-guest-memory', { paging: false, protocol, format });
        }
        for (const name of ['own.elf', 'own.raw', 'own.lime', 'qemu.elf', 'qemu.kdump-zlib']) {
          const machine = openSnapshot(join(directory, name));
          const found = await Linux.find(machine.memory, { cache: false });
          assert.deepEqual(await rows(found), expected, name);
          if (name.startsWith('qemu')) {
            assert.equal(machine.vcpus.length, 2);
            const states = machine.vcpus.map((vcpu) => {
              const state = new Uint8Array(536);
              vcpu.readState(state);
              return state;
            });
            assert.deepEqual((await found.check({ states })).rows, []);
          }
          await machine.close();
        }
      } finally {
        await busy.guest.monitor.execute('cont');
        rmSync(directory, { recursive: true });
      }
    });
  });
}
