import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openSnapshot } from '../../src/drivers/snapshot/index.ts';
import { hex, Linux, Pointer, type Process } from '../../src/linux/index.ts';
import { moduleTypes } from '../../src/linux/module-types.ts';
import { later } from '../kit/memory.ts';
import { parseStats } from '../kit/proc.ts';
import { COMPARISONS, pidOfProgram, processStats, RUNNING, stable } from './compare.ts';
import { type BusyGuest, bootBusyGuest, MODULES, shutDown, whyNot } from './guest-kit.ts';

const GUESTS = [
  { series: '6.1', processor: 'qemu64', addressBits: 48 },
  { series: '6.12', processor: 'qemu64', addressBits: 48 },
  { series: '6.12', processor: 'max', addressBits: 57 },
] as const;

for (const { series, processor, addressBits } of GUESTS) {
  const name = `a Debian ${series} guest with ${addressBits}-bit addresses`;
  describe(name, { skip: whyNot(series), timeout: 600_000 }, () => {
    let busy: BusyGuest;
    let linux: Linux;

    before(async () => {
      busy = await bootBusyGuest(series, ['-cpu', processor]);
      linux = await Linux.find(busy.memory, { cache: false });
    });
    after(() => shutDown(busy));

    const programPid = () => pidOfProgram(busy.guest);

    for (const [what, compare] of Object.entries(COMPARISONS)) {
      test(`${what} are its own`, () => compare(linux, busy.guest));
    }

    test('a dump has the same', async () => {
      const directory = mkdtempSync(join(tmpdir(), 'kvmi-dump-'));
      const file = join(directory, 'dump');
      await busy.guest.monitor.execute('stop');
      try {
        await busy.guest.monitor.execute('dump-guest-memory', { paging: false, protocol: `file:${file}` });
      } finally {
        await busy.guest.monitor.execute('cont');
      }
      const machine = openSnapshot(file);
      try {
        const dumped = await Linux.find(machine.memory, { cache: false });
        for (const compare of Object.values(COMPARISONS)) await compare(dumped, busy.guest);
      } finally {
        await machine.close();
        rmSync(directory, { recursive: true });
      }
    });

    test('nothing is missing while processes come and go as fast as they can', async () => {
      const storm = 'while [ -e /tmp/storm ]; do (true | true) & done';
      await busy.guest.run(`touch /tmp/storm; (${storm}) >/dev/null 2>&1 &`);
      const first = await processStats(busy.guest);
      const lists: Process[][] = [];
      for (let i = 0; i < 50; i++) lists.push((await linux.processes()).rows);
      try {
        for (const compare of Object.values(RUNNING)) await compare(linux, busy.guest);
      } finally {
        await busy.guest.run('rm /tmp/storm');
      }
      const lasting = stable(first, await processStats(busy.guest));
      assert.ok(lasting.length > 20, 'there are lasting processes');
      for (const [index, rows] of lists.entries()) {
        const pids = new Set(rows.map(({ pid }) => pid));
        const missing = lasting.filter(({ pid }) => !pids.has(pid));
        assert.deepEqual(missing, [], `list ${index}`);
      }
    });

    test('symbols are found by name and by address', () => {
      const address = linux.symbols.require('schedule');
      assert.equal(linux.symbols.lookup(address + 3n)?.offset, 3);
      assert.ok(linux.symbols.namesAt(address).includes('schedule'));
      assert.equal(linux.symbols.address('no_such_symbol'), undefined);
    });

    test('symbols of modules are those of its own /proc/kallsyms', async () => {
      // Code that is made at run time is listed like modules: [bpf], [ftrace].
      const names = MODULES.map((name) => `-e '\\[${name}\\]'`).join(' ');
      const own = (await busy.guest.run(`grep ${names} /proc/kallsyms`)).trim().split('\n');
      const { rows, reasons } = await linux.moduleSymbols();
      assert.deepEqual(reasons, []);
      // The case of the letter says whether a symbol is exported, which only the kernel's own tables know.
      const text = rows.map(
        ({ name, address, type, module }) =>
          `${hex(address).slice(2)} ${type.toLowerCase()} ${name}\t[${module}]`,
      );
      assert.deepEqual(
        text,
        own.map((line) => line.slice(0, 17) + line.slice(17, 18).toLowerCase() + line.slice(18)),
      );
      const { address } = rows.find(({ name }) => name === 'llc_sap_open')!;
      const [at] = (await linux.moduleSymbolAt(address + 5n)).rows;
      assert.deepEqual([at?.name, at?.module, at?.offset], ['llc_sap_open', 'llc', 5]);
      assert.deepEqual((await linux.moduleSymbolAt(linux.symbols.require('schedule'))).rows, []);
    });

    test('types of modules are those of its own /sys/kernel/btf', async () => {
      const own = await busy.guest.run(`cd /sys/kernel/btf; md5sum ${MODULES.join(' ')} | sort -k 2`);
      const { rows } = await linux.query(moduleTypes);
      const ours = rows.map(({ module, types }) => {
        const digest = createHash('md5').update(types.bytes).digest('hex');
        return `${digest}  ${module}\n`;
      });
      assert.equal(ours.sort((a, b) => (a.slice(34) < b.slice(34) ? -1 : 1)).join(''), own);
      const members = (await linux.type('garp:garp_applicant')).rows;
      assert.ok(members.some(({ name, type }) => name === 'dev' && type === 'struct net_device *'));
      assert.deepEqual((await linux.type('garp_applicant')).rows, members);
      assert.throws(() => linux.type('llc:garp_applicant'), { code: 'E_TYPE' });
      const variable = (await linux.print('(list_head)llc:llc_sap_list')).rows[0]!;
      const symbols = (await linux.moduleSymbols('llc')).rows;
      assert.equal(variable.address, symbols.find(({ name }) => name === 'llc_sap_list')?.address);
    });

    test('the token table finds the same kernel as VMCOREINFO', async () => {
      const hidden = withoutVmcoreinfo(busy);
      const found = await Linux.find(hidden, { cache: false });
      assert.equal(found.kernel.banner, linux.kernel.banner);
      assert.equal(found.kernel.imageGpa, linux.kernel.imageGpa);
      assert.deepEqual(found.kernel.paging, linux.kernel.paging);
      assert.deepEqual(found.symbols.arrays.addresses, linux.symbols.arrays.addresses);
    });

    test('the program: executable, command line, environment, threads', async () => {
      const pid = await programPid();
      const row = (await linux.processes()).rows.find((candidate) => candidate.pid === pid);
      assert.equal(row?.exe, '/program');
      assert.deepEqual(row?.commandLine.slice(0, 3), ['/program', 'one', 'two words']);
      assert.equal(row?.threads, 3);
      assert.equal(row?.kernelThread, false);
      const environment = (await linux.environment(pid)).rows;
      assert.equal(environment.find(({ name }) => name === 'ANSWER')?.value, '42');
      assert.equal(environment.find(({ name }) => name === 'EMPTY')?.value, '');
      const threads = (await linux.threads(pid)).rows;
      const own = (await busy.guest.run(`ls /proc/${pid}/task`)).trim().split(/\s+/).map(Number);
      assert.deepEqual(threads.map(({ tid }) => tid).sort(), own.sort());
      assert.deepEqual(threads.map(({ comm }) => comm).sort(), ['first thread', 'program', 'second thread']);
    });

    test('eBPF programs are those that the guest has loaded', async (t) => {
      const pid = await programPid();
      const own = await busy.guest.run(`cat /proc/${pid}/fdinfo/* | grep -E '^prog_(tag|id):' || true`);
      if (own === '') return t.skip('the kernel takes no eBPF programs');
      const { rows } = await linux.bpfPrograms();
      const row = rows.find(({ name }) => name === 'take_nothing');
      assert.equal(row?.type, 'socket_filter');
      assert.equal(own, `prog_tag:\t${row?.tag}\nprog_id:\t${row?.id}\n`);
    });

    test('a process in the control group of a container names the container', async () => {
      const pid = await programPid();
      const id = 'c0ffee42'.repeat(8);
      const group = `/tmp/cgroup/system.slice/docker-${id}.scope`;
      await busy.guest.run('mkdir -p /tmp/cgroup && mount -t cgroup2 cgroup2 /tmp/cgroup');
      await busy.guest.run(`mkdir -p ${group} && echo ${pid} >${group}/cgroup.procs`);
      try {
        const row = (await linux.processes()).rows.find((candidate) => candidate.pid === pid);
        assert.equal(row?.container, id);
        const own = await busy.guest.run(`grep ^0:: /proc/${pid}/cgroup`);
        assert.equal(`0::${row?.controlGroup}\n`, own);
      } finally {
        await busy.guest.run(`echo ${pid} >/tmp/cgroup/cgroup.procs; umount /tmp/cgroup`);
      }
    });

    test('start times and uptime agree with the clock of the guest', async () => {
      const pid = await programPid();
      const row = (await linux.processes()).rows.find((candidate) => candidate.pid === pid)!;
      const stat = parseStats(await busy.guest.run(`cat /proc/${pid}/stat`))[0]!;
      assert.equal(Number(row.startNs / 10_000_000n), stat.startTicks);
      const before = Number((await busy.guest.run('cut -d" " -f1 /proc/uptime')).trim());
      const { uptimeSeconds, release, time, ...system } = (await linux.system()).rows[0]!;
      assert.equal(system.addressBits, addressBits);
      const [now, epoch] = (await busy.guest.run('cut -d" " -f1 /proc/uptime; date +%s'))
        .trim()
        .split('\n')
        .map(Number);
      assert.ok(
        uptimeSeconds >= before - 0.1 && uptimeSeconds <= now!,
        `${before} <= ${uptimeSeconds} <= ${now}`,
      );
      assert.ok(Math.abs(Number(time) / 1e9 - epoch!) < now! - before + 3, `${time} and ${epoch}`);
      assert.equal(release, (await busy.guest.run('uname -r')).trim());
    });

    test('open files are those of /proc/PID/fd', async () => {
      const pid = await programPid();
      const rows = (await linux.files(pid)).rows.map(({ fd, path }) => `${fd} ${path}`);
      const own = await busy.guest.run(`cd /proc/${pid}/fd; for f in *; do echo "$f $(readlink $f)"; done`);
      assert.deepEqual(
        rows,
        own
          .trim()
          .split('\n')
          .sort((a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10)),
      );
      const deleted = (await linux.files(pid)).rows.find(({ path }) => path.startsWith('/tmp/deleted'));
      assert.deepEqual([deleted?.access, deleted?.position, deleted?.type], ['rw', 12, 'file']);
    });

    test('sockets name the process that has them open', async () => {
      const pid = await programPid();
      const { rows } = await linux.sockets();
      const listener = rows.find(({ localPort, state }) => localPort === 7001 && state === 'LISTEN');
      assert.deepEqual(
        [listener?.pid, listener?.comm, listener?.localAddress],
        [pid, 'program', '127.0.0.1'],
      );
      assert.equal(rows.find(({ localPort }) => localPort === 7002)?.localAddress, '::1');
      assert.equal(rows.find(({ path }) => path === '@abstract')?.pid, pid);
    });

    test('the kernel log is that of dmesg', async () => {
      await busy.guest.run('echo "<4>a line for the log" >/dev/kmsg');
      const own = (await busy.guest.run('dmesg -r')).trim().split('\n');
      const rows = (await linux.log()).rows;
      const texts = rows.flatMap(({ text }) => text.split('\n'));
      assert.deepEqual(
        texts.slice(-50),
        own.slice(-50).map((line) => line.replace(/^<\d+>\[ *[\d.]+\] /, '')),
      );
      assert.equal(rows.at(-1)?.level, 4);
    });

    test('variables are read with their types', async () => {
      const value = async (expression: string) => (await linux.print(expression)).rows[0]?.value;
      assert.equal(await value('init_task.comm'), 'swapper/0');
      assert.equal(await value('init_uts_ns.name.sysname'), 'Linux');
      assert.equal(await value('init_task.cred->uid.val'), 0);
      assert.equal(await value('init_task.thread_pid->numbers[0].nr'), 0);
      const name = await value('(file_system_type)proc_fs_type.name');
      assert.ok(name instanceof Pointer && name.text === 'proc', 'a pointer to characters has its text');
      const pid = await programPid();
      const { address } = (await linux.processes()).rows.find((row) => row.pid === pid)!;
      assert.equal(await value(`(task_struct)${address}.real_parent->pid`), 1);
      const offset = (await linux.type('task_struct')).rows.find(({ name }) => name === 'comm')?.offset;
      assert.equal(
        address + BigInt(offset!),
        (await linux.print(`(task_struct)${address}.comm`)).rows[0]!.address,
      );
    });

    test('memory that answers later gives the same rows', async () => {
      await busy.guest.monitor.execute('stop');
      try {
        const slow = await Linux.find(later(busy.memory), { cache: false });
        assert.deepEqual((await slow.processes()).rows, (await linux.processes()).rows);
        assert.deepEqual((await slow.sockets()).rows, (await linux.sockets()).rows);
        assert.deepEqual((await slow.files()).rows, (await linux.files()).rows);
      } finally {
        await busy.guest.monitor.execute('cont');
      }
    });
  });
}

/** The same memory without VMCOREINFO. */
function withoutVmcoreinfo({ memory }: BusyGuest) {
  const marker = Buffer.from('OSRELEASE=');
  return {
    regions: memory.regions,
    nextData: (gpa: number) => memory.nextData(gpa),
    write: () => false,
    read: (gpa: number, into: Uint8Array) => {
      const backed = memory.read(gpa, into) === true;
      const bytes = Buffer.from(into.buffer, into.byteOffset, into.length);
      for (let at = bytes.indexOf(marker); at >= 0; at = bytes.indexOf(marker, at + 1)) bytes[at] = 0;
      return backed;
    },
  };
}
