import { accessSync, constants, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { resolve } from 'node:path';
import { messageOf } from '../../error.ts';
import { commandLine, isQemu } from './process.ts';

/** A QEMU that runs on this host, as its command line describes it. */
export interface FoundQemu {
  readonly pid: number;
  /** `-name`; `qemu-PID` when it has none. */
  readonly name: string;
  /** `-uuid`, in lower case. */
  readonly uuid: string | undefined;
  readonly vcpus: number;
  /** Bytes of guest memory. */
  readonly memory: number;
  /** `tcg`, `kvm`, … */
  readonly accelerator: string;
  /** The path of a QMP socket that nobody uses; undefined: there is none, see `reason`. */
  readonly qmp: string | undefined;
  readonly reason: string | undefined;
}

/** QEMU's own defaults. */
const DEFAULT_MEMORY_MIB = 128;
const DEFAULT_ACCELERATOR = 'tcg';

/** What is read from a command line: `-name guest=web,debug-threads=on` and the like. */
export type QemuArguments = Pick<FoundQemu, 'uuid' | 'vcpus' | 'memory' | 'accelerator'> & {
  readonly name: string | undefined;
  /** Paths of Unix sockets with a QMP server, as they are written. */
  readonly qmp: readonly string[];
};

/** Every QEMU of this host. Those of other users are complete only for root. */
export function findQemuMachines(): FoundQemu[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const machines = pids.map(Number).filter(isQemu);
  const busy = machines.length > 0 ? connectedSockets() : new Set<string>();
  return machines.flatMap((pid) => describe(pid, busy) ?? []);
}

function describe(pid: number, busy: ReadonlySet<string>): FoundQemu | undefined {
  const words = commandLine(pid);
  // A process that ends has no arguments any more.
  if (words.length === 0) return undefined;
  const { qmp, name = `qemu-${pid}`, ...rest } = parseQemuArguments(words.slice(1));
  return { pid, name, ...rest, ...usable(pid, qmp, busy) };
}

/** Understands what matters here of QEMU's command line, in all the ways it can be written. */
export function parseQemuArguments(words: readonly string[]): QemuArguments {
  const values = optionValues(words);
  const last = (option: string) => values.get(option)?.at(-1);
  const name = last('name');
  const memory = last('m');
  const smp = last('smp');
  return {
    name: name === undefined ? undefined : property(name, 'guest', true),
    uuid: last('uuid')?.toLowerCase(),
    vcpus: Number.parseInt((smp && property(smp, 'cpus', true)) ?? '1', 10) || 1,
    memory: sizeInBytes((memory && property(memory, 'size', true)) ?? String(DEFAULT_MEMORY_MIB)),
    accelerator: acceleratorOf(values),
    qmp: qmpPaths(values),
  };
}

/** The values of each option, in order; `''` for options without one. */
function optionValues(words: readonly string[]): Map<string, string[]> {
  const values = new Map<string, string[]>();
  words.forEach((word, i) => {
    const option = /^--?([a-z].*)$/.exec(word)?.[1];
    if (option === undefined) return;
    const next = words[i + 1] ?? '';
    values.set(option, [...(values.get(option) ?? []), next.startsWith('-') ? '' : next]);
  });
  return values;
}

/** A property of `a,key=value,…`; `first`: the part without a key stands for it. A comma in a value is doubled. */
function property(text: string, key: string, first = false): string | undefined {
  const parts = text.split(/(?<!,),(?!,)/).map((part) => part.replaceAll(',,', ','));
  const found = parts.find((part) => part.startsWith(`${key}=`));
  if (found !== undefined) return found.slice(key.length + 1);
  return first && !/^[a-z-]+=/.test(parts[0]!) ? parts[0] : undefined;
}

const SIZE_UNITS: Readonly<Record<string, number>> = { k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/** `-m 512`, `-m 2G`: without a unit it is MiB. */
function sizeInBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([kmgt])?/i.exec(text);
  return match ? Number(match[1]) * SIZE_UNITS[(match[2] ?? 'm').toLowerCase()]! : 0;
}

function acceleratorOf(values: ReadonlyMap<string, readonly string[]>): string {
  const accel = values.get('accel')?.[0];
  if (accel !== undefined) return property(accel, 'accel', true) ?? DEFAULT_ACCELERATOR;
  if (values.has('enable-kvm')) return 'kvm';
  const machines = [...(values.get('machine') ?? []), ...(values.get('M') ?? [])];
  for (const machine of machines) {
    const accelerator = property(machine, 'accel');
    if (accelerator !== undefined) return accelerator.split(':')[0]!;
  }
  return DEFAULT_ACCELERATOR;
}

function qmpPaths(values: ReadonlyMap<string, readonly string[]>): string[] {
  const paths: string[] = [];
  for (const option of ['qmp', 'qmp-pretty']) {
    for (const value of values.get(option) ?? []) {
      if (value.startsWith('unix:')) paths.push(value.slice(5).split(',')[0]!);
    }
  }
  const chardevs = values.get('chardev') ?? [];
  for (const monitor of values.get('mon') ?? []) {
    if (property(monitor, 'mode') !== 'control') continue;
    const id = property(monitor, 'chardev', true);
    const chardev = chardevs.find((each) => property(each, 'id') === id);
    const path = chardev?.startsWith('socket,') ? property(chardev, 'path') : undefined;
    if (path !== undefined) paths.push(path);
  }
  return paths;
}

/** The first socket that can be used, or why none can. */
function usable(
  pid: number,
  paths: readonly string[],
  busy: ReadonlySet<string>,
): Pick<FoundQemu, 'qmp' | 'reason'> {
  let reason = 'it has no QMP socket with a path';
  for (const written of paths) {
    const path = absolute(pid, written);
    if (busy.has(path) || busy.has(written)) {
      reason = `its QMP socket ${path} is in use`;
      continue;
    }
    try {
      accessSync(path, constants.R_OK | constants.W_OK);
      return { qmp: path, reason: undefined };
    } catch (error) {
      reason = `its QMP socket cannot be opened: ${messageOf(error)}`;
    }
  }
  return { qmp: undefined, reason };
}

/** A path as QEMU wrote it, which may be relative to its working directory. */
function absolute(pid: number, path: string): string {
  try {
    return resolve(readlinkSync(`/proc/${pid}/cwd`), path);
  } catch {
    return path;
  }
}

const CONNECTED = '03';

/** Paths of Unix sockets that have a client: their server's end is connected under the same path. */
function connectedSockets(): Set<string> {
  const paths = new Set<string>();
  for (const line of readFileSync('/proc/net/unix', 'utf8').split('\n')) {
    const [, , , , , state, , path] = line.trim().split(/\s+/);
    if (state === CONNECTED && path) paths.add(path);
  }
  return paths;
}
