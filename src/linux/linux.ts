import type { Awaitable } from '../awaitable.ts';
import { Btf } from '../btf/btf.ts';
import type { TypeSource } from '../btf/types.ts';
import { KvmiError } from '../error.ts';
import type { Gva, Paging, PhysicalMemory } from '../machine/index.ts';
import { evaluate, type TypedValue } from '../reading/expression.ts';
import type { QueryOptions, Rows } from '../reading/question.ts';
import type { OnProgress } from '../reading/scan.ts';
import { type TypeRow, typeRows } from '../reading/values.ts';
import { run, type Walk, wait } from '../reading/walk.ts';
import { type BpfProgram, bpfPrograms } from './bpf.ts';
import { defaultCacheDirectory, type Source, storeCached } from './cache.ts';
import {
  type Baseline,
  type CheckOptions,
  check,
  type Finding,
  type Hook,
  hooks,
  takeBaseline,
} from './check/index.ts';
import { type EnvironmentVariable, environment } from './environment.ts';
import { type OpenFile, openFiles } from './files.ts';
import { type FoundKernel, findKernel } from './find.ts';
import { Kernel } from './kernel.ts';
import { Layouts } from './layout.ts';
import { kernelLog, type LogRecord } from './log.ts';
import { type MemoryMap, memoryMaps } from './maps.ts';
import {
  type ModuleSymbol,
  type ModuleSymbolAt,
  moduleSymbolLookup,
  moduleSymbols,
} from './module-symbols.ts';
import { typeNamed } from './module-types.ts';
import { type Module, modules } from './modules.ts';
import { type Mount, mounts } from './mounts.ts';
import { namesOf } from './names.ts';
import { Session } from './session.ts';
import { type Socket, sockets } from './sockets.ts';
import type { SymbolAt, SymbolTable } from './symbols.ts';
import { type SystemInfo, systemInfo } from './system.ts';
import { type Process, processes, type Thread, type TreeRow, threads, treeOf } from './tasks.ts';

export interface FindOptions {
  readonly onProgress?: OnProgress;
  /** The kernel's types, when it has no BTF: from a vmlinux file or an ISF file. */
  readonly types?: TypeSource;
  /** The VMCOREINFO text that a dump carries. */
  readonly vmcoreinfo?: string;
  /** The paging of a vCPU: where the kernel must be found without VMCOREINFO, only what it maps is searched. */
  readonly paging?: Paging;
  /**
   * Where decoded kernels are kept for the next time; `$XDG_CACHE_HOME/kvmi/linux` unless told, false for nowhere.
   * What is kept is used again only for the very same symbols and types.
   */
  readonly cache?: string | false;
}

/** What a Linux guest can be found in: a guest that a tool has, a machine of a driver, or the memory of either. */
export type LinuxGuest =
  | PhysicalMemory
  | {
      readonly memory: PhysicalMemory;
      /** The VMCOREINFO text that a dump carries. */
      readonly vmcoreinfo?: string | undefined;
    };

/** A check reads all of memory. */
const CHECK_TIMEOUT_MS = 60_000;

/** A Linux guest, seen from outside: everything is read from its memory, and nothing is written. */
export class Linux {
  readonly kernel: Kernel;

  private constructor(kernel: Kernel) {
    this.kernel = kernel;
  }

  /**
   * Finds the kernel in a guest's memory. Synchronous when the memory is. Throws a KvmiError with code E_NO_LINUX when
   * there is none, E_NO_TYPES when it has no BTF and no other types are given.
   */
  static find(guest: LinuxGuest, options: FindOptions = {}): Awaitable<Linux> {
    if (!('memory' in guest)) return run(Linux.#find(guest, options));
    const { memory, vmcoreinfo } = guest;
    return run(Linux.#find(memory, vmcoreinfo === undefined ? options : { vmcoreinfo, ...options }));
  }

  static *#find(memory: PhysicalMemory, options: FindOptions): Walk<Linux> {
    const cacheDirectory =
      options.cache === false || options.types ? undefined : (options.cache ?? defaultCacheDirectory());
    const found = yield* findKernel(memory, { ...options, cacheDirectory });
    return new Linux(yield* withTypes(memory, found, options.types, cacheDirectory));
  }

  /** All symbols of the kernel image, both ways. */
  get symbols(): SymbolTable {
    return this.kernel.symbols;
  }

  /** The symbol of the kernel image that an address belongs to; of modules see {@link moduleSymbolAt}. */
  symbolAt(address: Gva): SymbolAt | undefined {
    return this.kernel.symbolAt(address);
  }

  processes(options?: QueryOptions): Awaitable<Rows<Process>> {
    return this.query((session) => processes(session), options);
  }

  /** One process, by its id; no row, and the reason, when there is none. */
  process(pid: number, options?: QueryOptions): Awaitable<Rows<Process>> {
    return this.query((session) => processes(session, pid), options);
  }

  /** Processes ordered as a tree, with their depth. */
  tree(options?: QueryOptions): Awaitable<Rows<TreeRow>> {
    return this.query(function* (session) {
      return treeOf(yield* processes(session));
    }, options);
  }

  /** All threads, or those of one process. */
  threads(pid?: number, options?: QueryOptions): Awaitable<Rows<Thread>> {
    return this.query((session) => threads(session, pid), options);
  }

  /** The mappings of a process. */
  maps(pid: number, options?: QueryOptions): Awaitable<Rows<MemoryMap>> {
    return this.query((session) => memoryMaps(session, pid), options);
  }

  /** Open files of all processes, or of one. */
  files(pid?: number, options?: QueryOptions): Awaitable<Rows<OpenFile>> {
    return this.query((session) => openFiles(session, pid), options);
  }

  /** TCP, UDP and Unix sockets of all network namespaces. */
  sockets(options?: QueryOptions): Awaitable<Rows<Socket>> {
    return this.query(sockets, options);
  }

  modules(options?: QueryOptions): Awaitable<Rows<Module>> {
    return this.query(modules, options);
  }

  /** Symbols of all loaded modules, or of one. Those of the kernel image are {@link symbols}. */
  moduleSymbols(module?: string, options?: QueryOptions): Awaitable<Rows<ModuleSymbol>> {
    return this.query((session) => moduleSymbols(session, module), options);
  }

  /** The symbol of a module that `address` belongs to; no row when it belongs to none. */
  moduleSymbolAt(address: Gva, options?: QueryOptions): Awaitable<Rows<ModuleSymbolAt>> {
    return this.query(function* (session) {
      const found = (yield* moduleSymbolLookup(session))(address);
      return found === undefined ? [] : [found];
    }, options);
  }

  /** The mounts that a process sees; those of init unless told. */
  mounts(pid?: number, options?: QueryOptions): Awaitable<Rows<Mount>> {
    return this.query((session) => mounts(session, pid), options);
  }

  /** The kernel log, oldest record first. */
  log(options?: QueryOptions): Awaitable<Rows<LogRecord>> {
    return this.query(kernelLog, options);
  }

  /** One row: names, version, clock. */
  system(options?: QueryOptions): Awaitable<Rows<SystemInfo>> {
    return this.query(systemInfo, options);
  }

  bpfPrograms(options?: QueryOptions): Awaitable<Rows<BpfProgram>> {
    return this.query(bpfPrograms, options);
  }

  environment(pid: number, options?: QueryOptions): Awaitable<Rows<EnvironmentVariable>> {
    return this.query((session) => environment(session, pid), options);
  }

  /**
   * The members of a structure or the values of an enumeration, with offsets: `type('task_struct')`. Types of modules
   * are found as well; `MODULE:NAME` says which one is meant.
   */
  type(name: string): Awaitable<Rows<TypeRow>> {
    return this.query(function* (session) {
      const type = yield* typeNamed(session, name);
      if (type === undefined)
        throw new KvmiError('E_TYPE', `neither the kernel nor a module of it has a type ${name}`);
      return typeRows(type, name);
    });
  }

  /** Reads a variable as a typed value: `print('init_task.comm')`, `print('(task_struct)0xffff….mm->pgd')`. */
  print(expression: string): Awaitable<Rows<TypedValue>> {
    return this.query(function* (session) {
      return [yield* evaluate(expression, namesOf(session), session.space, (reason) => session.note(reason))];
    });
  }

  /**
   * Looks for signs of manipulation: changed code, system calls and interrupts that lead elsewhere, processes and modules
   * that are hidden, rights that grew. No row means that nothing was found, not that nothing is there.
   */
  check(checkOptions: CheckOptions = {}, options?: QueryOptions): Awaitable<Rows<Finding>> {
    return this.query((session) => check(session, checkOptions), { timeoutMs: CHECK_TIMEOUT_MS, ...options });
  }

  /** What {@link check} compares with later: take it when the guest is thought to be well. */
  baseline(): Awaitable<Baseline> {
    return run(takeBaseline(new Session(this.kernel)));
  }

  /** What ftrace, kprobes and eBPF have hooked. None of it is a finding by itself. */
  hooks(options?: QueryOptions): Awaitable<Rows<Hook>> {
    return this.query(hooks, options);
  }

  /** Runs a walk as one question: with its own copy of what it reads, and its own limits. */
  query<T>(walk: (session: Session) => Walk<T[]>, options?: QueryOptions): Awaitable<Rows<T>> {
    const session = new Session(this.kernel, options);
    return run(
      (function* () {
        return session.rows(yield* walk(session));
      })(),
    );
  }
}

function* withTypes(
  memory: PhysicalMemory,
  found: FoundKernel,
  given: TypeSource | undefined,
  cacheDirectory: string | undefined,
): Walk<Kernel> {
  const { symbols, imageDelta, paging, banner, buildId } = found;
  const imageStart = symbols.address('_text') ?? symbols.require('_stext');
  let types = given ?? (found.layouts === undefined ? yield* readBtf(memory, found) : undefined);
  const layouts = new Layouts(types, found.layouts);
  if (found.layouts === undefined && cacheDirectory !== undefined)
    yield* keep(memory, found, layouts, cacheDirectory);
  return new Kernel({
    memory,
    paging,
    symbols,
    layouts,
    *loadTypes() {
      types ??= yield* readBtf(memory, found);
      return types;
    },
    banner,
    release: /^Linux version (\S+)/.exec(banner)?.[1] ?? '',
    buildId,
    imageGpa: gpaOf(imageStart, imageDelta),
    imageStart,
    imageEnd: symbols.address('_end') ?? imageStart,
  });
}

function* keep(memory: PhysicalMemory, found: FoundKernel, layouts: Layouts, directory: string): Walk<void> {
  const { cacheKey, kernelOffset, imageDelta, symbols, banner } = found;
  if (cacheKey === undefined || kernelOffset === undefined) return;
  const place = { memory, imageDelta, kernelOffset };
  const sources = [...found.sources, btfOf(found)];
  yield* storeCached(directory, cacheKey, place, { symbols, layouts: layouts.all(), banner }, sources);
}

const MAX_BTF = 64 << 20;

function btfOf({ symbols, banner }: FoundKernel): Source {
  const address = symbols.address('__start_BTF');
  const end = symbols.address('__stop_BTF');
  const size = address === undefined || end === undefined ? 0 : Number(end - address);
  if (address !== undefined && size > 0 && size <= MAX_BTF) return { address, size };
  throw new KvmiError('E_NO_TYPES', `the kernel has no type information (BTF): ${banner}`, {
    hint: 'Give a vmlinux file with BTF, or an ISF file, of exactly this kernel.',
  });
}

function* readBtf(memory: PhysicalMemory, found: FoundKernel): Walk<Btf> {
  const { address, size } = btfOf(found);
  const bytes = new Uint8Array(size);
  if (yield* wait(memory.read(gpaOf(address, found.imageDelta), bytes))) return new Btf(bytes);
  throw new KvmiError('E_GUEST_MEMORY', 'the type information of the kernel could not be read', {
    hint: 'It is part of the kernel image, which should always be in memory. Is this dump cut off?',
  });
}

function gpaOf(gva: Gva, delta: bigint): number {
  return Number(gva + delta);
}
