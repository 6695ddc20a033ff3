import { type Field, fieldOf, sizeOf, type TypeSource } from '../btf/types.ts';
import { KvmiError } from '../error.ts';

/** One name, or several: the first one that this kernel has. */
type Names = string | readonly string[];

function namesOf(names: Names): readonly string[] {
  return typeof names === 'string' ? [names] : names;
}

/**
 * Every structure and field of the kernel that is used, and all that differs between versions: a name here stands for
 * the first path that the kernel's types have. Offsets come from those types only.
 */
export const LAYOUT = {
  task: [
    'task_struct',
    {
      pid: 'pid',
      tgid: 'tgid',
      state: ['__state', 'state'],
      exitState: 'exit_state',
      flags: 'flags',
      comm: 'comm',
      mm: 'mm',
      files: 'files',
      fs: 'fs',
      cred: 'cred',
      realCred: 'real_cred',
      parent: 'real_parent',
      groupLeader: 'group_leader',
      tasks: 'tasks',
      threadNode: 'thread_node',
      startTime: ['start_boottime', 'real_start_time'],
      userTime: 'utime',
      systemTime: 'stime',
      nsproxy: 'nsproxy',
      cgroups: 'cgroups',
      signal: 'signal',
      cpu: ['thread_info.cpu', 'cpu'],
      onRunQueue: 'on_rq',
      threadPid: ['thread_pid', 'pids[0].pid'],
      runNode: 'se.run_node',
      seNode: 'se.group_node',
      rtNode: 'rt.run_list',
      stack: 'stack',
      schedClass: 'sched_class',
    },
  ],
  signal: ['signal_struct', { threadHead: 'thread_head', threads: 'nr_threads' }],
  cred: [
    'cred',
    {
      uid: 'uid.val',
      gid: 'gid.val',
      euid: 'euid.val',
      egid: 'egid.val',
      suid: 'suid.val',
      sgid: 'sgid.val',
      fsuid: 'fsuid.val',
      fsgid: 'fsgid.val',
      capEffective: ['cap_effective.val', 'cap_effective.cap'],
      capPermitted: ['cap_permitted.val', 'cap_permitted.cap'],
      usage: ['usage.counter', 'usage'],
      userNamespace: 'user_ns',
      user: 'user',
    },
  ],
  user: ['user_struct', { uid: 'uid.val' }],
  mm: [
    'mm_struct',
    {
      pgd: 'pgd',
      firstArea: 'mmap',
      areaTree: 'mm_mt.ma_root',
      areas: 'map_count',
      argStart: 'arg_start',
      argEnd: 'arg_end',
      envStart: 'env_start',
      envEnd: 'env_end',
      brkStart: 'start_brk',
      brk: 'brk',
      stackStart: 'start_stack',
      exeFile: 'exe_file',
      totalPages: 'total_vm',
      filePages: ['rss_stat[0].count', 'rss_stat.count[0].counter'],
      anonPages: ['rss_stat[1].count', 'rss_stat.count[1].counter'],
      shmemPages: ['rss_stat[3].count', 'rss_stat.count[3].counter'],
      filePagesCpu: 'rss_stat[0].counters',
      anonPagesCpu: 'rss_stat[1].counters',
      shmemPagesCpu: 'rss_stat[3].counters',
      contextVdso: 'context.vdso',
    },
  ],
  area: [
    'vm_area_struct',
    {
      start: 'vm_start',
      end: 'vm_end',
      next: 'vm_next',
      flags: ['vm_flags', '__vm_flags'],
      pageOffset: 'vm_pgoff',
      file: 'vm_file',
      mm: 'vm_mm',
      operations: 'vm_ops',
      private: 'vm_private_data',
    },
  ],
  specialMapping: ['vm_special_mapping', { name: 'name' }],
  mapleRange: ['maple_range_64', { pivots: 'pivot', slots: 'slot' }],
  mapleArange: ['maple_arange_64', { pivots: 'pivot', slots: 'slot' }],
  pid: ['pid', { level: 'level', number: 'numbers[0].nr', numbers: 'numbers', tasks: 'tasks[0].first' }],
  upid: ['upid', { number: 'nr', namespace: 'ns' }],
  taskPidLink: ['task_struct', { link: ['pid_links[0]', 'pids[0].node'] }],
  pidNamespace: ['pid_namespace', { idr: 'idr.idr_rt', inum: 'ns.inum', level: 'level' }],
  xarray: [['xarray', 'radix_tree_root'], { head: ['xa_head', 'rnode'] }],
  xarrayNode: [['xa_node', 'radix_tree_node'], { shift: 'shift', slots: 'slots' }],
  idr: ['idr', { tree: 'idr_rt' }],
  files: ['files_struct', { table: 'fdt' }],
  fdTable: ['fdtable', { max: 'max_fds', files: 'fd', open: 'open_fds' }],
  file: [
    'file',
    {
      dentry: ['f_path.dentry', '__f_path.dentry'],
      mount: ['f_path.mnt', '__f_path.mnt'],
      inode: 'f_inode',
      position: 'f_pos',
      flags: 'f_flags',
      mode: 'f_mode',
      operations: 'f_op',
      private: 'private_data',
    },
  ],
  dentry: [
    'dentry',
    {
      parent: 'd_parent',
      name: 'd_name.name',
      nameLength: 'd_name.len',
      inode: 'd_inode',
      operations: 'd_op',
      superBlock: 'd_sb',
      hash: 'd_hash.pprev',
    },
  ],
  inode: [
    'inode',
    {
      number: 'i_ino',
      mode: 'i_mode',
      superBlock: 'i_sb',
      device: 'i_rdev',
      size: 'i_size',
      uid: 'i_uid.val',
      links: 'i_nlink',
      operations: 'i_fop',
    },
  ],
  superBlock: [
    'super_block',
    {
      type: 's_type',
      id: 's_id',
      device: 's_dev',
      flags: 's_flags',
      magic: 's_magic',
      root: 's_root',
      private: 's_fs_info',
    },
  ],
  fileSystem: ['file_system_type', { name: 'name' }],
  fs: ['fs_struct', { rootMount: 'root.mnt', root: 'root.dentry', workMount: 'pwd.mnt', work: 'pwd.dentry' }],
  mount: [
    'mount',
    {
      parent: 'mnt_parent',
      mountPoint: 'mnt_mountpoint',
      vfsMount: 'mnt',
      root: 'mnt.mnt_root',
      superBlock: 'mnt.mnt_sb',
      flags: 'mnt.mnt_flags',
      device: 'mnt_devname',
      id: 'mnt_id',
      list: 'mnt_list',
      node: 'mnt_node',
      namespace: 'mnt_ns',
    },
  ],
  mountNamespace: [
    'mnt_namespace',
    { list: 'list', tree: 'mounts.rb_node', inum: 'ns.inum', root: 'root', count: ['nr_mounts', 'mounts'] },
  ],
  rbNode: ['rb_node', { left: 'rb_left', right: 'rb_right' }],
  nsproxy: ['nsproxy', { mount: 'mnt_ns', net: 'net_ns', uts: 'uts_ns' }],
  css: ['css_set', { group: 'dfl_cgrp', subsystems: 'subsys' }],
  cssState: ['cgroup_subsys_state', { group: 'cgroup' }],
  cgroup: ['cgroup', { node: 'kn' }],
  kernfs: ['kernfs_node', { name: 'name', parent: ['__parent', 'parent'] }],
  module: [
    'module',
    {
      list: 'list',
      name: 'name',
      state: 'state',
      base: ['mem[0].base', 'core_layout.base'],
      size: ['mem[0].size', 'core_layout.size'],
      textSize: ['mem[0].size', 'core_layout.text_size'],
      initSize: 'init_layout.size',
      memory: 'mem',
      references: ['refcnt.counter', 'refcnt'],
      users: 'source_list',
      taints: 'taints',
      version: 'version',
      kallsyms: 'kallsyms',
      init: 'init',
      exit: 'exit',
      kobject: 'mkobj.kobj',
      self: 'mkobj.mod',
      jumpEntries: 'jump_entries',
      jumpCount: 'num_jump_entries',
      staticCalls: 'static_call_sites',
      staticCallCount: 'num_static_call_sites',
      sections: 'sect_attrs',
    },
  ],
  moduleMemory: ['module_memory', { base: 'base', size: 'size' }],
  moduleUse: ['module_use', { list: 'source_list', source: 'source' }],
  moduleKobject: ['module_kobject', { kobject: 'kobj', module: 'mod' }],
  moduleSymbols: [
    'mod_kallsyms',
    { symbols: 'symtab', count: 'num_symtab', strings: 'strtab', types: 'typetab' },
  ],
  kset: ['kset', { list: 'list' }],
  kobject: ['kobject', { entry: 'entry', name: 'name' }],
  btfModule: ['btf_module', { list: 'list', module: 'module', btf: 'btf' }],
  btf: ['btf', { data: 'data', size: 'data_size', name: 'name' }],
  net: [
    'net',
    {
      list: 'list',
      inum: 'ns.inum',
      tcpTables: ['ipv4.tcp_death_row.hashinfo'],
      udpTable: 'ipv4.udp_table',
      unixBuckets: 'unx.table.buckets',
    },
  ],
  tcpTables: [
    'inet_hashinfo',
    {
      established: 'ehash',
      establishedMask: 'ehash_mask',
      listening: 'listening_hash',
      listening2: 'lhash2',
      listening2Mask: 'lhash2_mask',
    },
  ],
  establishedBucket: ['inet_ehash_bucket', { first: 'chain.first' }],
  listeningBucket: ['inet_listen_hashbucket', { first: ['nulls_head.first', 'head.first'] }],
  udpTable: ['udp_table', { hash: 'hash', mask: 'mask' }],
  udpBucket: ['udp_hslot', { first: 'head.first' }],
  sock: [
    'sock',
    {
      family: '__sk_common.skc_family',
      state: '__sk_common.skc_state',
      node: ['__sk_common.skc_nulls_node', '__sk_common.skc_node'],
      remoteAddress: '__sk_common.skc_daddr',
      localAddress: '__sk_common.skc_rcv_saddr',
      remotePort: '__sk_common.skc_dport',
      localPort: '__sk_common.skc_num',
      remoteAddress6: '__sk_common.skc_v6_daddr',
      localAddress6: '__sk_common.skc_v6_rcv_saddr',
      net: '__sk_common.skc_net.net',
      type: 'sk_type',
      protocol: 'sk_protocol',
      socket: 'sk_socket',
      uid: 'sk_uid.val',
      receiveQueue: 'sk_receive_queue.qlen',
      backlog: 'sk_ack_backlog',
    },
  ],
  sockCommon: [
    'sock_common',
    {
      family: 'skc_family',
      state: 'skc_state',
      remoteAddress: 'skc_daddr',
      localAddress: 'skc_rcv_saddr',
      remotePort: 'skc_dport',
      localPort: 'skc_num',
      remoteAddress6: 'skc_v6_daddr',
      localAddress6: 'skc_v6_rcv_saddr',
      net: 'skc_net.net',
    },
  ],
  timeWait: ['inet_timewait_sock', { substate: 'tw_substate' }],
  socket: ['socket', { state: 'state', type: 'type', sock: 'sk', file: 'file' }],
  socketInode: ['socket_alloc', { socket: 'socket', inode: 'vfs_inode' }],
  unixSock: ['unix_sock', { address: 'addr', peer: 'peer', inode: 'sk' }],
  unixAddress: ['unix_address', { length: 'len', path: ['name[0].sun_path', 'name.sun_path'] }],
  ringBuffer: [
    'printk_ringbuffer',
    {
      countBits: 'desc_ring.count_bits',
      descriptors: 'desc_ring.descs',
      infos: 'desc_ring.infos',
      head: 'desc_ring.head_id.counter',
      tail: 'desc_ring.tail_id.counter',
      sizeBits: 'text_data_ring.size_bits',
      text: 'text_data_ring.data',
    },
  ],
  logDescriptor: [
    'prb_desc',
    { state: 'state_var.counter', begin: 'text_blk_lpos.begin', next: 'text_blk_lpos.next' },
  ],
  logInfo: [
    'printk_info',
    { sequence: 'seq', time: 'ts_nsec', length: 'text_len', facility: 'facility', level: 'level' },
  ],
  logRecord: [
    'printk_log',
    { time: 'ts_nsec', length: 'len', textLength: 'text_len', facility: 'facility', level: 'level' },
  ],
  utsNamespace: ['uts_namespace', { name: 'name' }],
  utsName: [
    'new_utsname',
    { system: 'sysname', node: 'nodename', release: 'release', version: 'version', machine: 'machine' },
  ],
  timekeeperCore: ['tk_data', { timekeeper: 'timekeeper' }],
  timekeeper: [
    'timekeeper',
    {
      seconds: 'xtime_sec',
      nanoseconds: 'tkr_mono.xtime_nsec',
      shift: 'tkr_mono.shift',
      monotonicSeconds: 'wall_to_monotonic.tv_sec',
      monotonicNanoseconds: 'wall_to_monotonic.tv_nsec',
      bootOffset: 'offs_boot',
    },
  ],
  program: ['bpf_prog', { type: 'type', tag: 'tag', aux: 'aux', jited: 'jited', function: 'bpf_func' }],
  programAux: [
    'bpf_prog_aux',
    {
      id: 'id',
      name: 'name',
      loadTime: 'load_time',
      attached: ['attach_func_name'],
      uid: 'user',
    },
  ],
  kprobe: [
    'kprobe',
    { node: 'hlist', address: 'addr', symbol: 'symbol_name', handler: 'pre_handler', flags: 'flags' },
  ],
  ftraceOps: [
    'ftrace_ops',
    {
      function: 'func',
      saved: 'saved_func',
      next: 'next',
      flags: 'flags',
      trampoline: 'trampoline',
      hash: 'func_hash',
    },
  ],
  ftraceOpsHash: ['ftrace_ops_hash', { filter: 'filter_hash' }],
  ftraceHash: ['ftrace_hash', { bits: 'size_bits', buckets: 'buckets', count: 'count' }],
  ftraceEntry: ['ftrace_func_entry', { node: 'hlist', address: 'ip', direct: 'direct' }],
  runQueue: [
    'rq',
    { cfsTasks: 'cfs_tasks', current: 'curr', running: 'nr_running', idle: 'idle', stop: 'stop' },
  ],
  ftracePage: ['ftrace_page', { next: 'next', records: 'records', count: 'index' }],
  ftraceRecord: ['dyn_ftrace', { address: 'ip', flags: 'flags' }],
  staticCallSite: ['static_call_site', { site: 'addr', key: 'key' }],
  gate: ['gate_struct', { low: 'offset_low', middle: 'offset_middle', high: 'offset_high', bits: 'bits' }],
  jumpEntry: ['jump_entry', { code: 'code', target: 'target', key: 'key' }],
  staticKey: ['static_key', { enabled: 'enabled.counter', type: 'type' }],
  alternative: [
    'alt_instr',
    {
      instruction: 'instr_offset',
      replacement: 'repl_offset',
      length: 'instrlen',
      replacementLength: 'replacementlen',
    },
  ],
  paravirtSite: ['paravirt_patch_site', { instruction: 'instr', length: 'len' }],
  slab: [
    'kmem_cache',
    { name: 'name', list: 'list', size: 'size', objectSize: 'object_size', offset: 'offset' },
  ],
  percpuCurrent: ['pcpu_hot', { task: 'current_task' }],
} as const satisfies Record<string, readonly [struct: Names, fields: Readonly<Record<string, Names>>]>;

export type StructName = keyof typeof LAYOUT;
export type FieldName<S extends StructName> = keyof (typeof LAYOUT)[S][1] & string;

/** A structure of the running kernel: the fields of {@link LAYOUT} that it has, and where they are. */
export interface StructLayout<S extends StructName = StructName> {
  readonly name: S;
  /** The kernel's name for it. */
  readonly type: string;
  /** In bytes; 0 when the kernel has no such structure. */
  readonly size: number;
  /** From the start of the first field to the end of the last one. */
  readonly span: { readonly start: number; readonly end: number };
  readonly fields: Readonly<Partial<Record<FieldName<S>, Field>>>;
}

/** Structures by name, resolved when they are first asked for. */
export class Layouts {
  readonly #resolved = new Map<StructName, StructLayout>();
  readonly #types: TypeSource | undefined;

  /** `known` is what an earlier resolution gave; without `types` there is nothing else. */
  constructor(types: TypeSource | undefined, known: Iterable<StructLayout> = []) {
    this.#types = types;
    for (const layout of known) this.#resolved.set(layout.name, layout);
  }

  get<S extends StructName>(name: S): StructLayout<S> {
    let layout = this.#resolved.get(name);
    if (layout === undefined) {
      layout = resolve(name, this.#types);
      this.#resolved.set(name, layout);
    }
    return layout as StructLayout as StructLayout<S>;
  }

  /** A field that this kernel must have; throws a KvmiError with code E_FIELD when it does not. */
  field<S extends StructName>(name: S, field: FieldName<S>): Field {
    const found = this.get(name).fields[field];
    if (found !== undefined) return found;
    throw noField(name, field);
  }

  has<S extends StructName>(name: S, field: FieldName<S>): boolean {
    return this.get(name).fields[field] !== undefined;
  }

  /** All structures of the table, for a cache. */
  all(): StructLayout[] {
    return (Object.keys(LAYOUT) as StructName[]).map((name) => this.get(name));
  }
}

export function noField<S extends StructName>(name: S, field: FieldName<S>): KvmiError {
  const [structs, fields] = LAYOUT[name] as readonly [Names, Readonly<Record<string, Names>>];
  const type = namesOf(structs).join(' or ');
  const tried = namesOf(fields[field]!).join(' or ');
  return new KvmiError('E_FIELD', `this kernel's ${type} has no ${tried}`, {
    hint: 'The kernel is built without that part, or is of a version that kvmi does not know yet.',
    data: { type, field },
  });
}

/** No structure that is used is nearly as large; damaged types would make each read one of megabytes. */
const MAX_STRUCT = 256 << 10;

function resolve(name: StructName, types: TypeSource | undefined): StructLayout {
  const [structs, table] = LAYOUT[name] as readonly [Names, Readonly<Record<string, Names>>];
  const type = namesOf(structs).find((candidate) => types?.find(candidate)) ?? namesOf(structs)[0]!;
  const struct = types?.find(type);
  const fields: Record<string, Field> = {};
  let start = Number.POSITIVE_INFINITY;
  let end = 0;
  for (const [field, paths] of Object.entries(table)) {
    for (const path of namesOf(paths)) {
      const found = struct && fieldOf(struct, path);
      if (found === undefined || found.offset + found.size > MAX_STRUCT) continue;
      fields[field] = found;
      start = Math.min(start, found.offset);
      end = Math.max(end, found.offset + found.size);
      break;
    }
  }
  const size = struct === undefined ? 0 : sizeOf(struct);
  return { name, type, size, span: { start: Math.min(start, end), end }, fields };
}

/** Variables and functions that have other names in other versions: the first one that this kernel has is meant. */
export const SYMBOL_NAMES = {
  topTable: ['init_top_pgt', 'swapper_pg_dir', 'init_level4_pgt'],
  /** What holds the time. */
  timekeeper: ['shadow_timekeeper', 'tk_core', 'timekeeper_data'],
  /** Where system calls enter the kernel: syscall, syscall of 32-bit code, sysenter. */
  syscallEntry: ['entry_SYSCALL_64', 'entry_SYSCALL_64_trampoline'],
  compatSyscallEntry: ['entry_SYSCALL_compat', 'entry_SYSCALL32_ignore', 'ignore_sysret'],
  sysenterEntry: ['entry_SYSENTER_compat'],
} as const;

/** Variables whose types BTF does not have. */
export const VARIABLES: Readonly<Record<string, string>> = {
  init_task: 'task_struct',
  init_mm: 'mm_struct',
  init_net: 'net',
  init_pid_ns: 'pid_namespace',
  init_user_ns: 'user_namespace',
  init_uts_ns: 'uts_namespace',
  init_nsproxy: 'nsproxy',
  init_cred: 'cred',
  init_fs: 'fs_struct',
  init_files: 'files_struct',
  init_css_set: 'css_set',
  init_ipc_ns: 'ipc_namespace',
  init_signals: 'signal_struct',
  root_user: 'user_struct',
  tcp_hashinfo: 'inet_hashinfo',
  modules: 'list_head',
  net_namespace_list: 'list_head',
  slab_caches: 'list_head',
  super_blocks: 'list_head',
  boot_cpu_data: 'cpuinfo_x86',
  shadow_timekeeper: 'timekeeper',
  prog_idr: 'idr',
  map_idr: 'idr',
  cgrp_dfl_root: 'cgroup_root',
  printk_rb_static: 'printk_ringbuffer',
};
