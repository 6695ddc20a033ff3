/** QEMU's own defaults. */
const DEFAULT_MEMORY_MIB = 128;
const DEFAULT_ACCELERATOR = 'tcg';

/** What is read from a command line: `-name guest=web,debug-threads=on` and the like. */
export interface QemuArguments {
  readonly name: string | undefined;
  /** In lower case. */
  readonly uuid: string | undefined;
  readonly vcpus: number;
  /** Bytes of guest memory. */
  readonly memory: number;
  /** `tcg`, `kvm`, … */
  readonly accelerator: string;
  /** Paths of Unix sockets with a QMP server, as they are written. */
  readonly qmp: readonly string[];
  /** libvirt started it and keeps its QMP socket for itself. */
  readonly libvirt: boolean;
}

/** What libvirt calls the monitor that it uses. */
const LIBVIRT_MONITOR = 'charmonitor';

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
    libvirt: controlMonitors(values).includes(LIBVIRT_MONITOR),
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

/** The character devices of `-mon …,mode=control`. */
function controlMonitors(values: ReadonlyMap<string, readonly string[]>): (string | undefined)[] {
  return (values.get('mon') ?? [])
    .filter((monitor) => property(monitor, 'mode') === 'control')
    .map((monitor) => property(monitor, 'chardev', true));
}

function qmpPaths(values: ReadonlyMap<string, readonly string[]>): string[] {
  const paths: string[] = [];
  for (const option of ['qmp', 'qmp-pretty']) {
    for (const value of values.get(option) ?? []) {
      if (value.startsWith('unix:')) paths.push(value.slice(5).split(',')[0]!);
    }
  }
  const chardevs = values.get('chardev') ?? [];
  for (const id of controlMonitors(values)) {
    const chardev = chardevs.find((each) => property(each, 'id') === id);
    const path = chardev?.startsWith('socket,') ? property(chardev, 'path') : undefined;
    if (path !== undefined) paths.push(path);
  }
  return paths;
}
