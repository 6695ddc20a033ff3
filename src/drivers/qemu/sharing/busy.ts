import { execFile } from 'node:child_process';
import { basename } from 'node:path';
import { KvmiError } from '../../../error.ts';
import { commandLine, readText } from '../../../system/proc.ts';

const SS_TIMEOUT_MS = 2000;
const SS_LIMIT = 16 << 20;

/** One line of `ss -xapnH`: a socket's path and inode, its peer's, and the processes that have it. */
const LINE = /^\S+\s+(\S+)\s+\d+\s+\d+\s+(.*?)\s+(\d+)\s+(\S+)\s+(\d+)(?:\s+users:(.*))?$/;

/** The processes at the two ends of a socket; undefined when one cannot be told, for example because it is another user's. */
export interface Ends {
  /** Who listens. */
  readonly server: number | undefined;
  /** Whose connection is served. */
  readonly client: number | undefined;
}

/** Who is at the socket at `path`, as iproute2's `ss` shows it. */
export async function endsOf(path: string): Promise<Ends> {
  const sockets = parseSockets(await listSockets());
  const own = sockets.filter((socket) => socket.path === path);
  const served = own.filter(({ connected }) => connected);
  const clients = served.flatMap(({ peer }) => sockets.find(({ inode }) => inode === peer)?.pids ?? []);
  return {
    server: own.find(({ connected }) => !connected)?.pids[0],
    client: clients.find((pid) => pid !== process.pid),
  };
}

/** The sockets that `ss -xapnH` prints. */
export function parseSockets(text: string): {
  readonly path: string;
  readonly inode: string;
  readonly peer: string;
  readonly connected: boolean;
  readonly pids: readonly number[];
}[] {
  return text.split('\n').flatMap((line) => {
    const match = LINE.exec(line.trimEnd());
    if (match === null) return [];
    const [, state, path, inode, , peer, users = ''] = match;
    const pids = [...users.matchAll(/pid=(\d+)/g)].map(([, pid]) => Number(pid));
    return [{ path: path!, inode: inode!, peer: peer!, connected: state === 'ESTAB', pids }];
  });
}

function listSockets(): Promise<string> {
  const options = { timeout: SS_TIMEOUT_MS, maxBuffer: SS_LIMIT };
  return new Promise((resolve) => {
    execFile('ss', ['-xapnH'], options, (error, stdout) => resolve(error ? '' : stdout));
  });
}

/** The program that a process runs and its first argument, for messages; undefined when it has ended. */
export function programOf(pid: number): string | undefined {
  const words = commandLine(pid);
  const script = words.findIndex((word, i) => i > 0 && !word.startsWith('-'));
  const [program, ...rest] = /^node(js)?$/.test(basename(words[0] ?? '')) ? words.slice(script) : words;
  if (program === undefined) return undefined;
  return [basename(program), ...rest.slice(0, 1)].join(' ');
}

/** Whether a program is this one, under whatever command, or its guard. */
export function isKvmi(program: string): boolean {
  return program.startsWith('kvmi');
}

/** Another process of kvmi changes the VM. */
export function heldError(path: string, pid: number): KvmiError {
  const program = programOf(pid);
  const who = program === undefined ? `process ${pid}` : `${program} (process ${pid})`;
  const stopped = isStopped(pid);
  return new KvmiError(
    'E_BUSY',
    `the VM at ${path} is held by ${who}${stopped ? ', which is stopped' : ''}`,
    {
      hint: stopped
        ? `Let it go on (kill -CONT ${pid}), or kill it (kill -KILL ${pid}): its guard undoes what it did to the VM.`
        : 'End it, or wait until it has unhooked. What only reads (ps, read, maps, …) works meanwhile.',
      data: { path, holder: pid, ...(program !== undefined && { program }) },
    },
  );
}

/** By a signal (SIGSTOP, Ctrl-Z), or by a debugger. */
export function isStopped(pid: number): boolean {
  return /^State:\s+[Tt]/m.test(readText(`/proc/${pid}/status`) ?? '');
}

/** A QMP socket serves somebody who does not share, or nobody, because QEMU is stopped. */
export function busyError(path: string, { server, client: pid }: Ends): KvmiError {
  if (server !== undefined && isStopped(server)) return stoppedError(path, server);
  const program = pid === undefined ? undefined : programOf(pid);
  if (pid !== undefined && program !== undefined && isKvmi(program) && isStopped(pid))
    return heldError(path, pid);
  const by =
    pid === undefined ? '' : program === undefined ? ` by process ${pid}` : ` by ${program} (process ${pid})`;
  return new KvmiError('E_BUSY', `the QMP socket ${path} is in use${by}: it does not greet`, {
    hint: 'A QMP socket serves one client. Close the other one, or give QEMU a second -qmp unix:PATH,server=on,wait=off.',
    data: { path, ...(pid !== undefined && { holder: pid }), ...(program !== undefined && { program }) },
  });
}

function stoppedError(path: string, pid: number): KvmiError {
  return new KvmiError(
    'E_QMP_TIMEOUT',
    `QEMU at ${path} (process ${pid}) is stopped by a signal, or by a debugger: it answers nobody`,
    { hint: `Let it go on: kill -CONT ${pid}.`, data: { path, process: pid } },
  );
}
