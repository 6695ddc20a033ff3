import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { inspect } from 'node:util';
import { STATE_SIZE } from '../../src/abi/state.ts';
import { type EVENT_MSRS, vcpuState } from '../../src/abi/x86.ts';
import { baselineFromBytes, baselineToBytes, type Finding, readKernelFile } from '../../src/linux/index.ts';
import { CACHE } from '../kit/debian-kernel.ts';
import { branch, TamperedGuest, u64 } from './check-kit.ts';
import { MODULES, whyNot } from './guest-kit.ts';

const JMP = 0xe9;

/** Kinds and subjects, which do not depend on where the kernel lies. */
function gist(findings: readonly Finding[]): string[] {
  return findings.map(({ check, subject }) => `${check}: ${subject}`);
}

/** The package that the guest's kernel is from. */
function packageOf(release: string): string | undefined {
  const directory = join(CACHE, 'debian');
  const name = existsSync(directory)
    ? readdirSync(directory).find((file) => file.startsWith(`linux-image-${release}_`))
    : undefined;
  return name === undefined ? undefined : join(directory, name);
}

for (const series of ['6.1', '6.12'] as const) {
  describe(`tampering with a Debian ${series} guest`, { skip: whyNot(series), timeout: 600_000 }, () => {
    let guest: TamperedGuest;
    before(async () => {
      guest = await TamperedGuest.boot(series);
    });
    after(() => guest?.shutDown());

    const symbol = (name: string) => guest.linux.symbols.require(name);

    test("nothing is found against the kernel's package, under load", async (t) => {
      const file = packageOf(guest.linux.kernel.release);
      if (file === undefined) return t.skip('the package of the kernel is not at hand');
      const vmlinux = await readKernelFile(file);
      const storm = 'while [ -e /tmp/storm ]; do (true | true); ls -R /proc/self >/dev/null 2>&1; done';
      await guest.busy.guest.run(`touch /tmp/storm; (${storm}) >/dev/null 2>&1 &`);
      const baseline = baselineFromBytes(baselineToBytes(await guest.linux.baseline()));
      try {
        for (let i = 0; i < 3; i++)
          assert.deepEqual((await guest.linux.check({ vmlinux, baseline })).rows, []);
      } finally {
        await guest.busy.guest.run('rm -f /tmp/storm');
      }
      const address = symbol('sys_call_table') + 16n;
      await guest.whileChanged([[address, u64(symbol('__x64_sys_write'))]], async () => {
        const { rows } = await guest.linux.check({ vmlinux });
        assert.deepEqual(gist(rows), ['syscall: sys_call_table[2]']);
        assert.deepEqual([rows[0]?.expected, rows[0]?.found], ['__x64_sys_open', '__x64_sys_write']);
      });
    });

    test('a task that fork is copying is no hidden process', async () => {
      const init = (await guest.linux.processes()).rows.find(({ pid }) => pid === 1)!;
      const { size, fields } = guest.linux.kernel.layouts.get('task');
      const copy = Buffer.from(await guest.read(init.address, size));
      // Memory that is in one piece, and of whose content nothing else is asked.
      const place = symbol('_text') & ~0xfffn;
      const hidden = async () =>
        (await guest.linux.check()).rows.filter(({ check }) => check === 'hidden-process');
      await guest.whileChanged([[place, copy]], async () => assert.deepEqual(await hidden(), []));
      copy.writeInt32LE(4_000_000, fields.pid!.offset);
      await guest.whileChanged([[place, copy]], async () =>
        assert.deepEqual(
          (await hidden()).map(({ subject, found }) => [subject, found]),
          [['4000000 init', 'only in memory']],
        ),
      );
    });

    test('a function that starts with a jump out of the kernel is found without any reference', async () => {
      const foreign = (await guest.linux.modules()).rows[0]!.base;
      const address = symbol('tcp4_seq_show');
      for (const code of [
        branch(JMP, address, foreign),
        Buffer.concat([Buffer.of(0x48, 0xb8), u64(foreign), Buffer.of(0xff, 0xe0)]),
        Buffer.concat([Buffer.of(0x68), u64(foreign).subarray(0, 4), Buffer.of(0xc3)]),
      ]) {
        await guest.whileChanged([[address, code]], async () => {
          const { rows } = await guest.linux.check();
          const finding = rows.find(({ subject }) => subject === 'tcp4_seq_show');
          assert.match(finding?.found ?? '', /^a jump to 0xffffffffc/, inspect(rows));
        });
      }
    });

    test('a direct call of a system call that leads elsewhere is found without any reference', async (t) => {
      if (guest.linux.symbols.address('x64_sys_call') === undefined)
        return t.skip('this kernel calls through its table');
      const dispatcher = symbol('x64_sys_call');
      const size = Number(guest.linux.symbols.nextAfter(dispatcher)! - dispatcher);
      const code = Buffer.from(
        (
          await guest.linux.query(function* ({ kernel }) {
            return [...(yield* kernel.readBulk(dispatcher, size))];
          })
        ).rows,
      );
      const target = symbol('__x64_sys_read');
      const at = Array.from(code.keys()).find(
        (i) =>
          (code[i] === 0xe8 || code[i] === JMP) &&
          i + 5 <= size &&
          dispatcher + BigInt(i + 5 + code.readInt32LE(i + 1)) === target,
      );
      assert.ok(at !== undefined, 'read is called directly');
      const address = dispatcher + BigInt(at);
      const changed = branch(code[at]!, address, symbol('vfs_fsync'));
      await guest.whileChanged([[address, changed]], async () => {
        assert.deepEqual(gist((await guest.linux.check()).rows), ['syscall: x64_sys_call, number 0']);
      });
    });

    test('an interrupt that leads to another entry is found with a baseline', async () => {
      const baseline = await guest.linux.baseline();
      const gate = symbol('idt_table') + 16n * 0x80n;
      const other = (await guest.read(symbol('idt_table') + 16n * 14n, 16)).slice();
      await guest.whileChanged([[gate, other]], async () => {
        assert.deepEqual(gist((await guest.linux.check({ baseline })).rows), ['interrupt: vector 128']);
        assert.deepEqual((await guest.linux.check()).rows, [], 'it is an entry of the kernel');
      });
    });

    test('entries of the kernel that are elsewhere are found in the states of vCPUs', async () => {
      const state = (msrs: Partial<Record<keyof typeof EVENT_MSRS, bigint>>) => {
        const bytes = new Uint8Array(STATE_SIZE);
        const values = vcpuState.read(bytes, 0);
        const entries = { lstar: symbol('entry_SYSCALL_64'), ...msrs };
        vcpuState.write(bytes, 0, { ...values, msrs: { ...values.msrs, ...entries } });
        return bytes;
      };
      const well = state({});
      assert.deepEqual((await guest.linux.check({ states: [well, well] })).rows, []);
      const evil = state({ lstar: symbol('vfs_read'), sysenter_eip: symbol('vfs_read') });
      const { rows } = await guest.linux.check({ states: [well, evil] });
      assert.deepEqual(gist(rows), ['entry: LSTAR of vCPU 1', 'entry: SYSENTER_EIP of vCPU 1']);
    });

    test('a module that is in no list is found in memory', async () => {
      const { layouts } = guest.linux.kernel;
      const { address, name } = (await guest.linux.modules()).rows[0]!;
      const module = address;
      const kobject = BigInt(layouts.field('module', 'kobject').offset);
      const changes = [
        ...(await guest.unlinking(module + BigInt(layouts.field('module', 'list').offset))),
        ...(await guest.unlinking(module + kobject + BigInt(layouts.field('kobject', 'entry').offset))),
      ];
      await guest.whileChanged(changes, async () => {
        const { rows } = await guest.linux.check();
        const hidden = rows.filter(({ check }) => check === 'hidden-module');
        assert.deepEqual(
          hidden.map(({ subject, found }) => [subject, found]),
          [[name, 'only in memory']],
        );
      });
    });

    test('changed code of a module is found with a baseline', async () => {
      const baseline = await guest.linux.baseline();
      const { rows } = await guest.linux.moduleSymbols(MODULES[0]);
      const { address } = rows.find(({ name }) => name === 'llc_sap_close')!;
      const changed = (await guest.read(address + 0x10n, 1)).map((byte) => byte ^ 0xff);
      await guest.whileChanged([[address + 0x10n, changed]], async () => {
        const findings = (await guest.linux.check({ baseline })).rows;
        assert.deepEqual(
          findings.map(({ check, address: at }) => [check, BigInt(at)]),
          [['text', address + 0x10n]],
        );
      });
    });

    test('stolen credentials are found without a baseline', async () => {
      await guest.busy.guest.run(
        '/program as-user >/dev/null 2>&1 & until grep -q "^Uid:.1000" /proc/$!/status; do sleep 0.1; done',
      );
      const { rows } = await guest.linux.processes();
      const user = rows.find(({ uid, comm }) => uid === 1000 && comm === 'program')!;
      const init = rows.find(({ pid }) => pid === 1)!;
      const { layouts } = guest.linux.kernel;
      const place = (row: { address: bigint }) =>
        row.address + BigInt(layouts.field('task', 'realCred').offset);
      const subject = `credentials: ${user.pid} program`;
      await guest.whileChanged([[place(user), await guest.read(place(init), 8)]], async () => {
        assert.deepEqual(gist((await guest.linux.check()).rows), [subject]);
      });
      await guest.whileChanged([[place(user), u64(symbol('init_cred'))]], async () => {
        assert.deepEqual(gist((await guest.linux.check()).rows), [subject]);
      });
      const uid = (await guest.pointer(place(user))) + BigInt(layouts.field('cred', 'uid').offset);
      await guest.whileChanged([[uid, new Uint8Array(4)]], async () => {
        const found = (await guest.linux.check()).rows;
        assert.deepEqual(gist(found), [subject]);
        assert.match(found[0]!.expected, /user id 1000/);
      });
    });

    test('what ftrace and kprobes hook is listed, and is no finding', async (t) => {
      const { guest: vm } = guest.busy;
      await vm.run('mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; true');
      const has = await vm.run(
        'cat /sys/kernel/tracing/available_tracers; ls /sys/kernel/tracing/kprobe_events || true',
      );
      if (!/\bfunction\b/.test(has) || !has.includes('kprobe_events'))
        return t.skip('the kernel cannot trace');
      const baseline = await guest.linux.baseline();
      await vm.run(
        'cd /sys/kernel/tracing; echo ksys_sync >set_ftrace_filter; echo function >current_tracer; ' +
          'echo p:probe vfs_unlink >kprobe_events; echo 1 >events/kprobes/probe/enable',
      );
      try {
        const { rows } = await guest.linux.hooks();
        assert.ok(
          rows.some(({ kind, place }) => kind === 'ftrace' && place.startsWith('ksys_sync')),
          inspect(rows),
        );
        assert.ok(rows.some(({ kind, place }) => kind === 'kprobe' && place.startsWith('vfs_unlink')));
        assert.deepEqual((await guest.linux.check({ baseline })).rows, []);
        const ops = rows.find(({ place }) => place.startsWith('ksys_sync'))!;
        const handler =
          ops.address + BigInt(guest.linux.kernel.layouts.field('ftraceOps', 'function').offset);
        await guest.whileChanged([[handler, u64(0xffff_ffff_c1234560n)]], async () => {
          assert.deepEqual(gist((await guest.linux.check()).rows), ['hook: a user of ftrace']);
        });
      } finally {
        await vm.run(
          'cd /sys/kernel/tracing; echo 0 >events/kprobes/probe/enable; echo >kprobe_events; echo nop >current_tracer',
        );
      }
    });
  });
}
