import { putU32, putU64 } from '../../../abi/bytes.ts';
import { errnoName } from '../../../abi/errno.ts';
import { SYS } from '../../../abi/linux.ts';
import { KvmiError } from '../../../error.ts';
import { libc } from '../../../system/libc.ts';
import { SharedMapping } from '../../../system/shared-mapping.ts';

const BPF_MAP_CREATE = 0;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TEST_RUN = 10;
const MAP_TYPE_ARRAY = 2;
const MAP_MMAPABLE = 1 << 10;
const PROG_TYPE_SYSCALL = 31;
const PROG_SLEEPABLE = 16;
const HELPER = { map_lookup_elem: 1, get_current_task: 35, probe_read_kernel: 113 } as const;
const ATTRIBUTE_SIZE = 128;
const TEST_RUN_SIZE = 80;
const READ_LIMIT = 4096;

/* Opcodes (Documentation/bpf/standardization/instruction-set.rst). */
const OP = {
  moveRegister: 0xbf,
  moveImmediate: 0xb7,
  addImmediate: 0x07,
  storeImmediate32: 0x62,
  store64: 0x7b,
  load64: 0x79,
  loadMap: 0x18,
  call: 0x85,
  jump: 0x05,
  ifEqual: 0x15,
  ifNotEqual: 0x55,
  ifAbove: 0x25,
  exit: 0x95,
} as const;
const PSEUDO_MAP_FD = 1;

type Instruction = readonly [
  op: number,
  destination: number,
  source: number,
  offset: number,
  immediate: number,
];

/**
 * The program: given {address, size}, copies kernel memory to the map; given address 0, stores the address of the
 * current task there.
 */
function program(map: number): readonly Instruction[] {
  return [
    [OP.moveRegister, 6, 1, 0, 0],
    [OP.storeImmediate32, 10, 0, -4, 0],
    [OP.loadMap, 1, PSEUDO_MAP_FD, 0, map],
    [0, 0, 0, 0, 0],
    [OP.moveRegister, 2, 10, 0, 0],
    [OP.addImmediate, 2, 0, 0, -4],
    [OP.call, 0, 0, 0, HELPER.map_lookup_elem],
    [OP.ifEqual, 0, 0, 10, 0],
    [OP.moveRegister, 7, 0, 0, 0],
    [OP.load64, 3, 6, 0, 0],
    [OP.ifNotEqual, 3, 0, 3, 0],
    [OP.call, 0, 0, 0, HELPER.get_current_task],
    [OP.store64, 7, 0, 0, 0],
    [OP.jump, 0, 0, 4, 0],
    [OP.load64, 2, 6, 8, 0],
    [OP.ifAbove, 2, 0, 2, READ_LIMIT],
    [OP.moveRegister, 1, 7, 0, 0],
    [OP.call, 0, 0, 0, HELPER.probe_read_kernel],
    [OP.moveImmediate, 0, 0, 0, 0],
    [OP.exit, 0, 0, 0, 0],
  ];
}

function assemble(instructions: readonly Instruction[]): Uint8Array {
  const code = new Uint8Array(instructions.length * 8);
  const view = new DataView(code.buffer);
  instructions.forEach(([op, destination, source, offset, immediate], i) => {
    code[i * 8] = op;
    code[i * 8 + 1] = destination | (source << 4);
    view.setInt16(i * 8 + 2, offset, true);
    view.setInt32(i * 8 + 4, immediate, true);
  });
  return code;
}

/** Reads memory of the kernel, by way of a BPF program that runs in this thread. */
export class KernelMemory {
  readonly #program: number;
  readonly #map: number;
  readonly #mapping: SharedMapping;
  readonly #value: Buffer;
  readonly #context = new Uint8Array(16);
  readonly #run = new Uint8Array(TEST_RUN_SIZE);

  /** @throws KvmiError with code E_NO_BPF where the kernel or the rights do not allow it. */
  constructor() {
    const lib = libc();
    const mapAttributes = new Uint8Array(ATTRIBUTE_SIZE);
    const words = [MAP_TYPE_ARRAY, 4, READ_LIMIT, 1, MAP_MMAPABLE];
    for (let i = 0; i < words.length; i++) putU32(mapAttributes, i * 4, words[i]!);
    this.#map = bpf(BPF_MAP_CREATE, mapAttributes, 'a map');
    this.#mapping = new SharedMapping('a BPF map', this.#map, READ_LIMIT, 'write');
    this.#value = Buffer.from(this.#mapping.bytes.buffer);
    const code = assemble(program(this.#map));
    const license = Buffer.from('GPL\0');
    const attributes = new Uint8Array(ATTRIBUTE_SIZE);
    putU32(attributes, 0, PROG_TYPE_SYSCALL);
    putU32(attributes, 4, code.length / 8);
    putU64(attributes, 8, lib.addressOf(code));
    putU64(attributes, 16, lib.addressOf(license));
    putU32(attributes, 44, PROG_SLEEPABLE);
    this.#program = bpf(BPF_PROG_LOAD, attributes, 'a program');
    putU32(this.#run, 0, this.#program);
    putU32(this.#run, 40, this.#context.length);
    putU64(this.#run, 48, lib.addressOf(this.#context));
  }

  /** Up to 4096 bytes at `address`; the array is reused by the next read. What cannot be read is zero. */
  read(address: bigint, size: number): Buffer {
    this.#value.fill(0, 0, size);
    putU64(this.#context, 0, address);
    putU64(this.#context, 8, BigInt(size));
    bpf(BPF_PROG_TEST_RUN, this.#run, 'a run');
    return this.#value.subarray(0, size);
  }

  pointer(address: bigint): bigint {
    return this.read(address, 8).readBigUInt64LE(0);
  }

  /** The address of this thread's task_struct. */
  currentTask(): bigint {
    this.read(0n, 0);
    return this.#value.readBigUInt64LE(0);
  }

  close(): void {
    this.#mapping.unmap();
    libc().close(this.#program);
    libc().close(this.#map);
  }
}

function bpf(command: number, attributes: Uint8Array, what: string): number {
  const result = Number(libc().syscallBytes(SYS.bpf, command, attributes, attributes.length));
  if (result >= 0) return result;
  throw new KvmiError('E_NO_BPF', `the kernel refuses ${what} of BPF: ${errnoName(libc().errno())}`, {
    hint: 'It needs Linux 5.14 or newer and root, or CAP_BPF and CAP_PERFMON.',
  });
}
