import type { LibraryHandle } from 'koffi';

/*
 * libunicorn2 as a second opinion on single instructions: an x86-64 processor in ring 0 without paging. Loaded
 * through koffi where both are there; nothing of it is part of the product.
 */

const LIBRARY = 'libunicorn.so.2';
const X86 = 4;
const MODE_64 = 8;
const ALL_ACCESS = 7;
const EFLAGS = 25;
const RIP = 41;
/** UC_X86_REG_* of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8–r15. */
const GENERAL = [35, 38, 40, 37, 44, 36, 43, 39, 106, 107, 108, 109, 110, 111, 112, 113];

interface Functions {
  write(engine: unknown, at: bigint, bytes: Uint8Array, size: number): number;
  read(engine: unknown, at: bigint, bytes: Uint8Array, size: number): number;
  start(engine: unknown, begin: bigint, until: bigint, timeout: bigint, count: number): number;
  regWrite(engine: unknown, register: number, value: Uint8Array): number;
  regRead(engine: unknown, register: number, value: Uint8Array): number;
}

function functionsOf(library: LibraryHandle): Functions {
  return {
    write: library.func('int uc_mem_write(void*, uint64_t, const void*, size_t)'),
    read: library.func('int uc_mem_read(void*, uint64_t, void*, size_t)'),
    start: library.func('int uc_emu_start(void*, uint64_t, uint64_t, uint64_t, size_t)'),
    regWrite: library.func('int uc_reg_write(void*, int, const void*)'),
    regRead: library.func('int uc_reg_read(void*, int, void*)'),
  };
}

export class Unicorn {
  readonly #library: LibraryHandle;
  readonly #functions: Functions;
  readonly #engine: unknown;
  readonly #value = Buffer.alloc(8);

  private constructor(library: LibraryHandle) {
    this.#library = library;
    this.#functions = functionsOf(library);
    const out: unknown[] = [null];
    const open = library.func('int uc_open(int, int, _Out_ void**)');
    if (open(X86, MODE_64, out) !== 0) throw new Error('uc_open failed');
    this.#engine = out[0];
  }

  /** An engine, or why there is none. */
  static async open(): Promise<Unicorn | string> {
    try {
      const { default: koffi } = await import('koffi');
      return new Unicorn(koffi.load(LIBRARY));
    } catch (error) {
      return `libunicorn2 through koffi is not available: ${(error as Error).message}`;
    }
  }

  map(at: number, size: number): void {
    const map = this.#library.func('int uc_mem_map(void*, uint64_t, size_t, uint32_t)');
    if (map(this.#engine, BigInt(at), size, ALL_ACCESS) !== 0) throw new Error('uc_mem_map failed');
  }

  write(at: number, bytes: Uint8Array): void {
    this.#functions.write(this.#engine, BigInt(at), bytes, bytes.length);
  }

  read(at: number, into: Uint8Array): void {
    this.#functions.read(this.#engine, BigInt(at), into, into.length);
  }

  /** Executes the instruction of `length` bytes at an address. False when it raised an exception instead. */
  step(at: number, length: number): boolean {
    const result = this.#functions.start(this.#engine, BigInt(at), BigInt(at + length), 0n, 0);
    return result === 0 && this.rip === BigInt(at + length);
  }

  setRegister(number: number, value: bigint): void {
    this.#set(GENERAL[number]!, value);
  }

  register(number: number): bigint {
    return this.#get(GENERAL[number]!);
  }

  get flags(): number {
    return Number(BigInt.asUintN(32, this.#get(EFLAGS)));
  }

  set flags(value: number) {
    this.#set(EFLAGS, BigInt(value));
  }

  get rip(): bigint {
    return this.#get(RIP);
  }

  #set(register: number, value: bigint): void {
    this.#value.writeBigUInt64LE(value);
    this.#functions.regWrite(this.#engine, register, this.#value);
  }

  #get(register: number): bigint {
    this.#functions.regRead(this.#engine, register, this.#value);
    return this.#value.readBigUInt64LE();
  }
}
