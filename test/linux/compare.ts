import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { Btf } from '../../src/btf/btf.ts';
import { hex, type Linux, run, type Socket } from '../../src/linux/index.ts';
import type { LinuxGuest } from '../kit/linux-guest.ts';
import {
  type ProcStat,
  parseInetSockets,
  parseMaps,
  parseStats,
  parseUnixSockets,
  procAddress,
} from '../kit/proc.ts';

/*
 * What is seen from outside against what the guest says itself, over its serial console. The outside may be the running
 * guest or a dump of it: what came or went in between is left out.
 */

type Comparison = (linux: Linux, guest: LinuxGuest) => Promise<void>;

export async function pidOfProgram(guest: LinuxGuest): Promise<number> {
  return Number((await guest.run('pidof program')).trim());
}

const STATS = 'for p in /proc/[0-9]*; do cat $p/stat 2>/dev/null; done; true';

export async function processStats(guest: LinuxGuest): Promise<ProcStat[]> {
  return parseStats(await guest.run(STATS));
}

/** Processes that were there before and after. */
export function stable(first: readonly ProcStat[], second: readonly ProcStat[]): ProcStat[] {
  return second.filter((stat) =>
    first.some(({ pid, startTicks }) => pid === stat.pid && startTicks === stat.startTicks),
  );
}

async function symbols(linux: Linux, guest: LinuxGuest): Promise<void> {
  const own = await guest.run("grep -v '\\[' /proc/kallsyms | md5sum | cut -d' ' -f1");
  const hash = createHash('md5');
  for (const { name, address, type } of linux.symbols)
    hash.update(`${hex(address).slice(2)} ${type} ${name}\n`);
  assert.equal(hash.digest('hex'), own.trim());
}

async function types(linux: Linux, guest: LinuxGuest): Promise<void> {
  const own = await guest.run("md5sum /sys/kernel/btf/vmlinux | cut -d' ' -f1");
  const btf = await run(linux.kernel.loadTypes());
  assert.ok(btf instanceof Btf);
  assert.equal(createHash('md5').update(btf.bytes).digest('hex'), own.trim());
}

/** Those that the test itself starts come and go. */
function isLasting(stat: ProcStat): boolean {
  return !['sh', 'cat', 'sleep', 'true', 'kworker'].some((name) => stat.comm.startsWith(name));
}

async function processes(linux: Linux, guest: LinuxGuest): Promise<void> {
  const first = await processStats(guest);
  const { rows, reasons } = await linux.processes();
  const lasting = stable(first, await processStats(guest)).filter(isLasting);
  assert.ok(lasting.length > 20, 'there are lasting processes');
  for (const stat of lasting) {
    const row = rows.find(({ pid }) => pid === stat.pid);
    assert.ok(row !== undefined, `process ${stat.pid} ${stat.comm} is missing: ${reasons.join()}`);
    assert.equal(row.ppid, stat.ppid, `parent of ${stat.pid}`);
    assert.equal(Number(row.startNs / 10_000_000n), stat.startTicks, `start of ${stat.pid}`);
    // /proc shows more of the names of kernel threads than fits into comm.
    assert.equal(row.comm, row.kernelThread ? stat.comm.slice(0, row.comm.length) : stat.comm);
  }
}

async function threads(linux: Linux, guest: LinuxGuest): Promise<void> {
  for (const pid of [1, await pidOfProgram(guest)]) {
    const { rows } = await linux.threads(pid);
    const own = await guest.run(`cd /proc/${pid}/task; for t in *; do echo "$t $(cat $t/comm)"; done`);
    const ours = rows.map(({ tid, comm }) => `${tid} ${comm}`);
    assert.deepEqual(ours.sort(), own.trim().split('\n').sort());
  }
}

async function maps(linux: Linux, guest: LinuxGuest): Promise<void> {
  for (const pid of [1, await pidOfProgram(guest)]) {
    const rows = (await linux.maps(pid)).rows.map(
      ({ start, end, protection, offset, device, inode, path }) =>
        [start, end].map((address) => address.toString(16).padStart(8, '0')).join(' ') +
        ` ${protection} ${offset} ${device} ${inode} ${path}`,
    );
    assert.deepEqual(rows, parseMaps(await guest.run(`cat /proc/${pid}/maps`)));
  }
}

async function files(linux: Linux, guest: LinuxGuest): Promise<void> {
  const pid = await pidOfProgram(guest);
  const rows = (await linux.files(pid)).rows.map(({ fd, path }) => `${fd} ${path}`);
  const own = await guest.run(`cd /proc/${pid}/fd; for f in *; do echo "$f $(readlink $f)"; done`);
  const byNumber = (a: string, b: string) => Number.parseInt(a, 10) - Number.parseInt(b, 10);
  assert.deepEqual(rows, own.trim().split('\n').sort(byNumber));
}

const STATES: Readonly<Record<string, number>> = {
  ESTABLISHED: 1,
  UNCONNECTED: 7,
  LISTEN: 10,
};

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

async function sockets(linux: Linux, guest: LinuxGuest): Promise<void> {
  const { rows } = await linux.sockets();
  for (const protocol of ['tcp', 'tcp6', 'udp', 'udp6'] as const) {
    const own = parseInetSockets(await guest.run(`cat /proc/net/${protocol}`));
    const ours = rows.filter((row) => row.protocol === protocol).map(asProc);
    assert.deepEqual(ours.sort(), own.map((socket) => JSON.stringify(socket)).sort(), protocol);
  }
  const own = parseUnixSockets(await guest.run('cat /proc/net/unix'));
  const unix = rows
    .filter(({ protocol }) => protocol === 'unix')
    .map(({ inode, path }) => `${inode} ${path}`);
  assert.deepEqual(unix.sort(), own.sort());
}

async function modules(linux: Linux, guest: LinuxGuest): Promise<void> {
  const own = (await guest.run('cat /proc/modules')).trim().split('\n');
  const rows = (await linux.modules()).rows.map(
    ({ name, size, references, users, state, base }) =>
      `${name} ${size} ${references} ${users.map((user) => `${user},`).join('') || '-'} ${state.replace(/^l/, 'L')} ${hex(base)}`,
  );
  assert.deepEqual(
    rows,
    own.map((line) => line.replace(/ \(.*\)$/, '')),
  );
}

async function mounts(linux: Linux, guest: LinuxGuest): Promise<void> {
  const own = (await guest.run('cat /proc/1/mountinfo')).trim().split('\n');
  const expected = own.map((line) => {
    const [left, right] = line.split(' - ') as [string, string];
    const [id, parent, device, , path, options] = left.split(' ');
    const [type, source] = right.split(' ');
    const name = source!.replaceAll('\\040', ' ');
    return [id, parent, device, path, type, name, options!.startsWith('ro')].join(' ');
  });
  const rows = (await linux.mounts()).rows.map((row) =>
    [row.id, row.parentId, row.device, row.path, row.fileSystem, row.source, row.readonly].join(' '),
  );
  assert.deepEqual(rows.sort(), expected.sort());
}

/** What changes while the guest runs, by what is compared. */
export const RUNNING: Readonly<Record<string, Comparison>> = {
  'processes (/proc/PID/stat)': processes,
  'threads (/proc/PID/task)': threads,
  'memory maps (/proc/PID/maps)': maps,
  'open files (/proc/PID/fd)': files,
  'sockets (/proc/net)': sockets,
  'modules (/proc/modules)': modules,
  'mounts (/proc/PID/mountinfo)': mounts,
};

export const COMPARISONS: Readonly<Record<string, Comparison>> = {
  'symbols (/proc/kallsyms)': symbols,
  'types (/sys/kernel/btf/vmlinux)': types,
  ...RUNNING,
};
