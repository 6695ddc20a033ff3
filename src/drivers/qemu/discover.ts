import { accessSync, constants, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { resolve } from 'node:path';
import { messageOf } from '../../error.ts';
import type { QmpAddress } from './open-qmp.ts';
import { commandLine, isQemu } from './process.ts';

/** A VM of QEMU on this host. */
export interface QemuProcess {
  readonly pid: number;
  readonly name: string;
  /** As in the command line; undefined without one. */
  readonly uuid: string | undefined;
  readonly vcpus: number;
  /** In bytes. */
  readonly memory: number;
  readonly accelerator: string;
  /** How to open it; undefined when it cannot be. */
  readonly address: QmpAddress | undefined;
  /** Why it cannot be opened, and what to do; undefined when it can. */
  readonly unavailable: string | undefined;
}

const DEFAULT_MEMORY = 128 << 20;
const UNITS: Readonly<Record<string, number>> = { B: 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** The QEMU VMs on this host, found without talking to them. */
export function findQemuMachines(): QemuProcess[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids
    .map(Number)
    .filter(isQemu)
    .flatMap((pid) => describe(pid) ?? []);
}

function describe(pid: number): QemuProcess | undefined {
  const args = commandLine(pid);
  if (args.length === 0) return undefined;
  const facts = parseCommandLine(args);
  const sockets = facts.qmp.map((path) => resolveFrom(pid, path));
  const reasons: string[] = [];
  let address: QmpAddress | undefined;
  if (!/x86_64|kvm/.test(args[0]!)) reasons.push(`it is ${args[0]}, not an x86-64 machine`);
  else if (facts.domain !== undefined) address = { libvirt: facts.domain };
  else if (sockets.length === 0)
    reasons.push('it has no QMP socket: start it with -qmp unix:PATH,server=on,wait=off');
  else {
    for (const path of sockets) {
      const reason = whyNotUsable(path);
      if (reason === undefined) address ??= { qmp: path };
      else reasons.push(reason);
    }
  }
  const unavailable = address === undefined ? reasons.join('; ') : undefined;
  return { pid, ...facts.shown, name: facts.shown.name ?? `pid ${pid}`, address, unavailable };
}

interface CommandLineFacts {
  readonly shown: Omit<QemuProcess, 'pid' | 'name' | 'address' | 'unavailable'> & {
    name: string | undefined;
  };
  /** Paths of QMP sockets. */
  readonly qmp: readonly string[];
  /** Set when libvirt holds the monitor. */
  readonly domain: string | undefined;
}

/** What a command line of QEMU says of its VM. */
export function parseCommandLine(args: readonly string[]): CommandLineFacts {
  const options = new Map<string, string[]>();
  args.forEach((arg, i) => {
    if (!arg.startsWith('-')) return;
    const name = arg.replace(/^--?/, '');
    options.set(name, [...(options.get(name) ?? []), args[i + 1] ?? '']);
  });
  const last = (name: string) => options.get(name)?.at(-1);
  const name = last('name');
  const monitors = qmpSockets(options);
  const shown = {
    name: name === undefined ? undefined : (property(name, 'guest') ?? name.split(',')[0]!),
    uuid: last('uuid'),
    vcpus: Number(property(last('smp') ?? '1', 'cpus') ?? last('smp')?.split(',')[0] ?? 1),
    memory: parseMemory(last('m')),
    accelerator: accelerator(options),
  };
  return { shown, qmp: monitors.paths, domain: monitors.passed ? shown.name : undefined };
}

/** The value of `key` in `a=b,key=value`. */
function property(option: string, key: string): string | undefined {
  return option
    .split(',')
    .find((part) => part.startsWith(`${key}=`))
    ?.slice(key.length + 1);
}

function parseMemory(option: string | undefined): number {
  const text = option === undefined ? undefined : (property(option, 'size') ?? option.split(',')[0]!);
  const match = /^(\d+)([BKMGT]?)$/i.exec(text ?? '');
  if (match === null) return DEFAULT_MEMORY;
  return Number(match[1]) * UNITS[match[2]!.toUpperCase() || 'M']!;
}

function accelerator(options: ReadonlyMap<string, readonly string[]>): string {
  if (options.has('enable-kvm')) return 'kvm';
  const accel = options.get('accel')?.[0]?.split(',')[0];
  const machine = options.get('machine')?.flatMap((option) => property(option, 'accel') ?? [])[0];
  return (accel?.replace(/^accel=/, '') ?? machine ?? 'tcg').split(':')[0]!;
}

/** `-qmp unix:…`, and `-chardev socket,…` with `-mon …,mode=control`. libvirt passes its socket as a descriptor. */
function qmpSockets(options: ReadonlyMap<string, readonly string[]>): { paths: string[]; passed: boolean } {
  const direct = [...(options.get('qmp') ?? []), ...(options.get('qmp-pretty') ?? [])].flatMap((option) =>
    option.startsWith('unix:') ? [option.slice('unix:'.length).split(',')[0]!] : [],
  );
  const ids = (options.get('mon') ?? [])
    .filter((option) => property(option, 'mode') === 'control')
    .map((option) => property(option, 'chardev') ?? option.split(',')[0]!);
  const chardevs = (options.get('chardev') ?? []).filter(
    (option) => option.startsWith('socket,') && ids.includes(property(option, 'id') ?? ''),
  );
  const paths = chardevs.flatMap((option) => property(option, 'path') ?? []);
  // libvirt names its monitor so, with a path in old versions and a descriptor in new ones.
  const passed = ids.includes('charmonitor');
  return { paths: passed ? [] : [...direct, ...paths], passed };
}

/** A path as the process `pid` means it. */
function resolveFrom(pid: number, path: string): string {
  try {
    return resolve(readlinkSync(`/proc/${pid}/cwd`), path);
  } catch {
    return path;
  }
}

function whyNotUsable(path: string): string | undefined {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
  } catch (error) {
    return `its QMP socket ${path} cannot be opened: ${messageOf(error)}`;
  }
  return isConnected(path) ? `its QMP socket ${path} is in use: give it a second -qmp socket` : undefined;
}

/** Whether a client is connected to a listening unix socket (state 03 in /proc/net/unix). */
function isConnected(path: string): boolean {
  try {
    const lines = readFileSync('/proc/net/unix', 'utf8').split('\n');
    return lines.some((line) => line.endsWith(` ${path}`) && /^\S+ \S+ \S+ \S+ \S+ 03 /.test(line));
  } catch {
    return false;
  }
}
