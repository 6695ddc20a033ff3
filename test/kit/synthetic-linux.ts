import { bytesBackend, RegionMemory } from '../../src/machine/index.ts';
import { btfImage, type StructDefinition } from './btf-image.ts';
import { type KallsymsOptions, kallsymsImage, type SymbolLine } from './kallsyms-image.ts';
import { LARGE, PRESENT, WRITABLE } from './page-tables.ts';

/*
 * A guest's memory with just enough of a Linux kernel in it to be found and to have processes: page tables,
 * VMCOREINFO, symbols, types, and a list of tasks. Whatever a hostile guest would do to it, a test can do.
 */

const SIZE = 16 << 20;
/** The image is mapped here, from guest-physical address 0 on … */
export const IMAGE_MAP = 0xffff_ffff_8000_0000n;
/** … and all of memory here. */
export const DIRECT_MAP = 0xffff_8880_0000_0000n;

const AT = {
  top: 0x1000,
  upper: 0x2000,
  directUpper: 0x3000,
  imageMiddle: 0x4000,
  directMiddle: 0x5000,
  banner: 0x10000,
  initTask: 0x11000,
  initPid: 0x12000,
  kallsyms: 0x20_0000,
  btf: 0x40_0000,
  vmcoreinfo: 0x60_0000,
  heap: 0x80_0000,
} as const;

const STRUCTS: Readonly<Record<string, StructDefinition>> = {
  list_head: { size: 16, members: { next: [0, 'void *'], prev: [8, 'void *'] } },
  kuid_t: { size: 4, members: { val: [0, 'u32'] } },
  cred: {
    size: 64,
    members: {
      uid: [0, 'struct kuid_t'],
      gid: [4, 'struct kuid_t'],
      euid: [8, 'struct kuid_t'],
      suid: [12, 'struct kuid_t'],
      fsuid: [16, 'struct kuid_t'],
    },
  },
  signal_struct: { size: 64, members: { nr_threads: [0, 's32'], thread_head: [16, 'struct list_head'] } },
  mm_struct: {
    size: 64,
    members: {
      pgd: [0, 'void *'],
      arg_start: [8, 'u64'],
      arg_end: [16, 'u64'],
      env_start: [24, 'u64'],
      env_end: [32, 'u64'],
      exe_file: [40, 'void *'],
      mmap: [48, 'void *'],
    },
  },
  files_struct: { size: 16, members: { fdt: [0, 'void *'] } },
  fdtable: { size: 16, members: { max_fds: [0, 'u32'], fd: [8, 'void *'] } },
  path: { size: 16, members: { mnt: [0, 'void *'], dentry: [8, 'void *'] } },
  file: {
    size: 64,
    members: {
      f_path: [0, 'struct path'],
      f_inode: [16, 'void *'],
      f_mode: [24, 'u32'],
      f_flags: [28, 'u32'],
    },
  },
  task_struct: {
    size: 512,
    members: {
      __state: [0, 'u32'],
      exit_state: [4, 's32'],
      flags: [8, 'u32'],
      pid: [16, 's32'],
      tgid: [20, 's32'],
      stack: [24, 'void *'],
      tasks: [32, 'struct list_head'],
      mm: [48, 'void *'],
      real_parent: [56, 'void *'],
      real_cred: [64, 'void *'],
      cred: [72, 'void *'],
      comm: [80, 'char[16]'],
      start_boottime: [96, 'u64'],
      signal: [104, 'void *'],
      thread_node: [112, 'struct list_head'],
      files: [128, 'void *'],
    },
  },
};

export const TASK = STRUCTS.task_struct!;
/** Of the synthetic kernel's structures by member: `offsetIn('mm_struct', 'pgd')`. */
export function offsetIn(struct: string, member: string): number {
  return STRUCTS[struct]!.members[member]![0];
}

function offsetOf(member: string): number {
  return TASK.members[member]![0];
}

/** What a kernel of some time is like. */
export interface Era {
  readonly release: string;
  readonly kallsyms: Omit<KallsymsOptions, 'address'>;
  /** Whether VMCOREINFO says where kallsyms is. */
  readonly listsKallsyms: boolean;
  /** Whether the types are in the image. */
  readonly hasBtf: boolean;
  /** Members of structures that have other names. */
  readonly renamed: Readonly<Record<string, string>>;
}

const RECENT: Era = {
  release: '6.9.0-synthetic',
  kallsyms: { order: 'addresses-last', form: 'relative', markerSize: 4, sequences: true },
  listsKallsyms: true,
  hasBtf: true,
  renamed: {},
};

export const LINUX_4_19: Era = {
  release: '4.19.0-synthetic',
  kallsyms: { order: 'addresses-first', form: 'absolute-percpu', markerSize: 8, sequences: false },
  listsKallsyms: false,
  hasBtf: false,
  renamed: { __state: 'state', start_boottime: 'real_start_time' },
};

function structsOf({ renamed }: Era): Readonly<Record<string, StructDefinition>> {
  return Object.fromEntries(
    Object.entries(STRUCTS).map(([name, { size, members }]) => {
      const named = Object.entries(members).map(([member, at]) => [renamed[member] ?? member, at] as const);
      return [name, { size, members: Object.fromEntries(named) }];
    }),
  );
}

export class SyntheticLinux {
  /** The kernel's types, as BTF. */
  readonly btf: Buffer;
  readonly bytes = Buffer.alloc(SIZE);
  readonly memory = new RegionMemory([
    { gpa: 0, size: SIZE, readonly: false, backend: bytesBackend(this.bytes) },
  ]);
  #heap: number = AT.heap;
  /** Guest-physical addresses of the tasks, init_task first. */
  readonly tasks: number[] = [AT.initTask];

  constructor(processes = 5, era = RECENT) {
    this.#pageTables();
    this.bytes.write(`Linux version ${era.release} (nobody@nowhere) #1 SMP\n\0`, AT.banner);
    this.btf = btfImage(structsOf(era));
    if (era.hasBtf) this.bytes.set(this.btf, AT.btf);
    this.#symbols(era);
    this.#task(AT.initTask, 0, 'swapper/0');
    for (let pid = 1; pid <= processes; pid++) this.addTask(pid, pid === 1 ? 'init' : `task ${pid}`);
  }

  #pageTables(): void {
    const entry = (table: number, index: number, value: bigint) =>
      this.bytes.writeBigUInt64LE(value | PRESENT | WRITABLE, table + 8 * index);
    entry(AT.top, 511, BigInt(AT.upper));
    entry(AT.upper, 510, BigInt(AT.imageMiddle));
    entry(AT.top, 273, BigInt(AT.directUpper));
    entry(AT.directUpper, 0, BigInt(AT.directMiddle));
    for (let i = 0; i < SIZE >> 21; i++) {
      entry(AT.imageMiddle, i, BigInt(i << 21) | LARGE);
      entry(AT.directMiddle, i, BigInt(i << 21) | LARGE);
    }
  }

  #symbols(era: Era): void {
    const at = (gpa: number) => IMAGE_MAP + BigInt(gpa);
    const known: Record<string, number> = {
      _text: 0,
      _stext: 0x1000,
      swapper_pg_dir: AT.top,
      init_top_pgt: AT.top,
      linux_banner: AT.banner,
      init_task: AT.initTask,
      init_pid_ns: AT.initPid,
      ...(era.hasBtf && { __start_BTF: AT.btf, __stop_BTF: AT.btf + this.btf.length }),
      _end: SIZE,
    };
    const lines: SymbolLine[] = Object.entries(known).map(([name, gpa]) => ({
      name,
      type: 'D',
      address: at(gpa),
    }));
    for (let i = 0; i < 1000; i++)
      lines.push({ name: `function_${i}`, type: 't', address: at(0x10_0000 + 16 * i) });
    lines.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0));
    const address = at(AT.kallsyms);
    const image = kallsymsImage(lines, { ...era.kallsyms, address });
    this.bytes.set(image.bytes, AT.kallsyms);
    const symbol = (name: string, offset: number) =>
      `SYMBOL(${name})=${(address + BigInt(offset)).toString(16)}\n`;
    const text =
      `OSRELEASE=${era.release}\n` +
      'BUILD-ID=00112233445566778899aabbccddeeff00112233\nPAGESIZE=4096\n' +
      `SYMBOL(swapper_pg_dir)=${at(AT.top).toString(16)}\nSYMBOL(_stext)=${at(0x1000).toString(16)}\n` +
      (era.listsKallsyms
        ? symbol('kallsyms_names', image.names) +
          symbol('kallsyms_num_syms', image.count) +
          symbol('kallsyms_token_table', image.tokenTable) +
          symbol('kallsyms_token_index', image.tokenIndex) +
          symbol('kallsyms_offsets', image.offsets) +
          symbol('kallsyms_relative_base', image.base!)
        : '') +
      'NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\nKERNELOFFSET=0\n';
    this.bytes.write(text, AT.vmcoreinfo);
  }

  /** Zeroed memory in the direct map. */
  allocate(size: number): number {
    const at = this.#heap;
    this.#heap += Math.ceil(size / 64) * 64;
    return at;
  }

  /** Where guest-physical memory is mapped; init_task is part of the image. */
  gva(gpa: number): bigint {
    return gpa === AT.initTask ? IMAGE_MAP + BigInt(gpa) : DIRECT_MAP + BigInt(gpa);
  }

  pointer(at: number, value: bigint): void {
    this.bytes.writeBigUInt64LE(BigInt.asUintN(64, value), at);
  }

  /** Where a member of a task is. */
  member(task: number, name: string): number {
    return task + offsetOf(name);
  }

  #task(at: number, pid: number, comm: string): void {
    const signal = this.allocate(64);
    const cred = this.allocate(64);
    this.bytes.writeInt32LE(pid, this.member(at, 'pid'));
    this.bytes.writeInt32LE(pid, this.member(at, 'tgid'));
    this.bytes.writeInt32LE(1, signal);
    this.bytes.write(comm, this.member(at, 'comm'));
    this.pointer(this.member(at, 'signal'), this.gva(signal));
    this.pointer(this.member(at, 'cred'), this.gva(cred));
    this.pointer(this.member(at, 'real_cred'), this.gva(cred));
    this.pointer(this.member(at, 'real_parent'), this.gva(AT.initTask));
    this.pointer(this.member(at, 'start_boottime'), BigInt(pid) * 1_000_000n);
    const link = this.gva(at) + BigInt(offsetOf('tasks'));
    this.pointer(this.member(at, 'tasks'), link);
    this.pointer(this.member(at, 'tasks') + 8, link);
    const thread = this.gva(at) + BigInt(offsetOf('thread_node'));
    const head = this.gva(signal) + 16n;
    this.pointer(signal + 16, thread);
    this.pointer(signal + 24, thread);
    this.pointer(this.member(at, 'thread_node'), head);
    this.pointer(this.member(at, 'thread_node') + 8, head);
  }

  /** A process at the end of the list. */
  addTask(pid: number, comm: string): number {
    const at = this.allocate(TASK.size);
    this.#task(at, pid, comm);
    const link = (task: number) => this.gva(task) + BigInt(offsetOf('tasks'));
    const last = this.tasks.at(-1)!;
    this.pointer(this.member(last, 'tasks'), link(at));
    this.pointer(this.member(at, 'tasks'), link(AT.initTask));
    this.pointer(this.member(at, 'tasks') + 8, link(last));
    this.pointer(this.member(AT.initTask, 'tasks') + 8, link(at));
    this.tasks.push(at);
    return at;
  }
}
