import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import type { Btf } from '../../src/linux/btf.ts';
import { hex, Linux, type Process, run, type Socket } from '../../src/linux/index.ts';
import { moduleTypes } from '../../src/linux/module-types.ts';
import { later } from '../kit/memory.ts';
import {
  type ProcStat,
  parseInetSockets,
  parseMaps,
  parseStats,
  parseUnixSockets,
  procAddress,
} from '../kit/proc.ts';
import { type BusyGuest, bootBusyGuest, MODULES, shutDown, whyNot } from './guest-kit.ts';

const STATS = 'for p in /proc/[0-9]*; do cat $p/stat 2>/dev/null; done; true';
const STATES: Readonly<Record<string, number>> = {
  ESTABLISHED: 1,
  UNCONNECTED: 7,
  LISTEN: 10,
};

for (const series of ['6.1', '6.12'] as const) {
  describe(`a Debian ${series} guest`, { skip: whyNot(series), timeout: 600_000 }, () => {
    let busy: BusyGuest;
    let linux: Linux;

    before(async () => {
      busy = await bootBusyGuest(series);
      linux = await Linux.find(busy.memory, { cache: false });
    });
    after(() => shutDown(busy));

    async function programPid(): Promise<number> {
      return Number((await busy.guest.run('pidof program')).trim());
    }

    test('its symbols are those of its own /proc/kallsyms', async () => {
      const own = await busy.guest.run("grep -v '\\[' /proc/kallsyms | md5sum | cut -d' ' -f1");
      const hash = createHash('md5');
      for (const { name, address, type } of linux.symbols)
        hash.update(`${hex(address).slice(2)} ${type} ${name}\n`);
      assert.equal(hash.digest('hex'), own.trim());
    });

    test('symbols are found by name and by address', () => {
      const address = linux.symbols.require('schedule');
      assert.equal(linux.symbols.lookup(address + 3n)?.offset, 3);
      assert.ok(linux.symbols.namesAt(address).includes('schedule'));
      assert.equal(linux.symbols.address('no_such_symbol'), undefined);
    });

    test('its types are those of its own /sys/kernel/btf/vmlinux', async () => {
      const own = await busy.guest.run("md5sum /sys/kernel/btf/vmlinux | cut -d' ' -f1");
      const btf = (await run(linux.kernel.loadTypes())) as Btf;
      assert.equal(createHash('md5').update(btf.bytes).digest('hex'), own.trim());
    });

    test('symbols of modules are those of its own /proc/kallsyms', async () => {
      const own = (await busy.guest.run("grep '\\[' /proc/kallsyms")).trim().split('\n');
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
      assert.equal(BigInt(variable.address), symbols.find(({ name }) => name === 'llc_sap_list')?.address);
    });

    test('the token table finds the same kernel as VMCOREINFO', async () => {
      const hidden = withoutVmcoreinfo(busy);
      const found = await Linux.find(hidden, { cache: false });
      assert.equal(found.kernel.banner, linux.kernel.banner);
      assert.equal(found.kernel.imageGpa, linux.kernel.imageGpa);
      assert.deepEqual(found.kernel.paging, linux.kernel.paging);
      assert.deepEqual(found.symbols.arrays.addresses, linux.symbols.arrays.addresses);
    });

    test('processes are those of /proc', async () => {
      const first = parseStats(await busy.guest.run(STATS));
      const { rows, partial, reasons } = await linux.processes();
      const second = parseStats(await busy.guest.run(STATS));
      assert.deepEqual(
        { partial, reasons: reasons.filter((reason) => !/arguments/.test(reason)) },
        { partial, reasons: [] },
      );
      compareProcesses(rows, stable(first, second));
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

    test('start times and uptime agree with the clock of the guest', async () => {
      const pid = await programPid();
      const row = (await linux.processes()).rows.find((candidate) => candidate.pid === pid)!;
      const stat = parseStats(await busy.guest.run(`cat /proc/${pid}/stat`))[0]!;
      assert.equal(Number(row.startNs / 10_000_000n), stat.startTicks);
      const before = Number((await busy.guest.run('cut -d" " -f1 /proc/uptime')).trim());
      const { uptimeSeconds, release, time } = (await linux.system()).rows[0]!;
      const [now, epoch] = (await busy.guest.run('cut -d" " -f1 /proc/uptime; date +%s'))
        .trim()
        .split('\n')
        .map(Number);
      assert.ok(
        uptimeSeconds >= before - 0.1 && uptimeSeconds <= now!,
        `${before} <= ${uptimeSeconds} <= ${now}`,
      );
      assert.ok(Math.abs(Date.parse(time) / 1000 - epoch!) < now! - before + 3, `${time} and ${epoch}`);
      assert.equal(release, (await busy.guest.run('uname -r')).trim());
    });

    test('memory maps are those of /proc/PID/maps', async () => {
      for (const pid of [1, await programPid()]) {
        const rows = (await linux.maps(pid)).rows.map(
          ({ start, end, protection, offset, device, inode, path }) =>
            [start, end].map((address) => address.slice(2).replace(/^0+/, '').padStart(8, '0')).join(' ') +
            ` ${protection} ${offset} ${device} ${inode} ${path}`,
        );
        assert.deepEqual(rows, parseMaps(await busy.guest.run(`cat /proc/${pid}/maps`)));
      }
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

    test('sockets are those of /proc/net', async () => {
      const { rows } = await linux.sockets();
      for (const protocol of ['tcp', 'tcp6', 'udp', 'udp6'] as const) {
        const own = parseInetSockets(await busy.guest.run(`cat /proc/net/${protocol}`));
        const ours = rows.filter((row) => row.protocol === protocol).map(asProc);
        assert.deepEqual(ours.sort(), own.map((socket) => JSON.stringify(socket)).sort(), protocol);
      }
      const own = parseUnixSockets(await busy.guest.run('cat /proc/net/unix'));
      const unix = rows
        .filter(({ protocol }) => protocol === 'unix')
        .map(({ inode, path }) => `${inode} ${path}`);
      assert.deepEqual(unix.sort(), own.sort());
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

    test('modules are those of /proc/modules', async () => {
      const own = (await busy.guest.run('cat /proc/modules')).trim().split('\n');
      const rows = (await linux.modules()).rows.map(
        ({ name, size, references, users, state, base }) =>
          `${name} ${size} ${references} ${users.map((user) => `${user},`).join('') || '-'} ${state.replace(/^l/, 'L')} ${base}`,
      );
      assert.deepEqual(
        rows,
        own.map((line) => line.replace(/ \(.*\)$/, '')),
      );
      assert.equal(rows.length, MODULES.length);
    });

    test('mounts are those of /proc/mounts', async () => {
      const own = (await busy.guest.run('cat /proc/1/mountinfo')).trim().split('\n');
      const expected = own.map((line) => {
        const [left, right] = line.split(' - ') as [string, string];
        const [id, parent, device, , path, options] = left.split(' ');
        const [type, source] = right.split(' ');
        return [
          id,
          parent,
          device,
          path,
          type,
          source!.replaceAll('\\040', ' '),
          options!.startsWith('ro'),
        ].join(' ');
      });
      const rows = (await linux.mounts()).rows.map((row) =>
        [row.id, row.parentId, row.device, row.path, row.fileSystem, row.source, row.readonly].join(' '),
      );
      assert.deepEqual(rows.sort(), expected.sort());
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
      const pid = await programPid();
      const { address } = (await linux.processes()).rows.find((row) => row.pid === pid)!;
      assert.equal(await value(`(task_struct)${address}.real_parent->pid`), 1);
      const offset = (await linux.type('task_struct')).rows.find(({ name }) => name === 'comm')?.offset;
      assert.equal(
        BigInt(address) + BigInt(offset!),
        BigInt((await linux.print(`(task_struct)${address}.comm`)).rows[0]!.address),
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

    test('while processes come and go as fast as they can', async () => {
      const storm = 'while [ -e /tmp/storm ]; do (true | true) & done';
      await busy.guest.run(`touch /tmp/storm; (${storm}) >/dev/null 2>&1 &`);
      const first = parseStats(await busy.guest.run(STATS));
      const lists: Process[][] = [];
      const deadline = Date.now() + 10_000;
      while (lists.length < 50 && Date.now() < deadline) lists.push((await linux.processes()).rows);
      const second = parseStats(await busy.guest.run(`rm /tmp/storm; ${STATS}`));
      const lasting = stable(first, second);
      assert.ok(lasting.length > 20, 'there are lasting processes');
      for (const [index, rows] of lists.entries()) {
        const pids = new Set(rows.map(({ pid }) => pid));
        const missing = lasting.filter(({ pid }) => !pids.has(pid));
        assert.ok(
          missing.length === 0 || index === undefined,
          `list ${index} lacks ${JSON.stringify(missing)}`,
        );
      }
    });
  });
}

/** Processes that were there before and after. */
function stable(first: readonly ProcStat[], second: readonly ProcStat[]): ProcStat[] {
  return second.filter((stat) =>
    first.some(({ pid, startTicks }) => pid === stat.pid && startTicks === stat.startTicks),
  );
}

function compareProcesses(rows: readonly Process[], own: readonly ProcStat[]): void {
  for (const stat of own) {
    const row = rows.find(({ pid }) => pid === stat.pid);
    assert.ok(row !== undefined, `process ${stat.pid} ${stat.comm} is missing`);
    assert.equal(row.ppid, stat.ppid, `parent of ${stat.pid}`);
    assert.equal(Number(row.startNs / 10_000_000n), stat.startTicks, `start of ${stat.pid}`);
    // /proc shows more of the names of kernel threads than fits into comm.
    assert.equal(row.comm, row.kernelThread ? stat.comm.slice(0, row.comm.length) : stat.comm);
  }
}

function asProc(socket: Socket): string {
  const { localAddress, localPort, remoteAddress, remotePort, state, uid, inode } = socket;
  return JSON.stringify({
    local: procAddress(localAddress, localPort),
    remote: procAddress(remoteAddress, remotePort),
    state: STATES[state],
    uid,
    inode,
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
