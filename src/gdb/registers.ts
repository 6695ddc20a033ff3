import { getU64, putU64 } from '../abi/bytes.ts';
import type { GeneralRegister } from '../abi/index.ts';
import { EVENT_MSRS } from '../abi/index.ts';
import type { Registers } from '../tool/index.ts';

/** What the registers of a vCPU are read from; undefined is not available. */
export interface RegisterSource {
  readonly registers: Registers | undefined;
  /** The legacy region of an XSAVE area: x87 and SSE. */
  readonly xsave: Uint8Array | undefined;
}

/** A register as GDB knows it. Its number is the place in {@link REGISTERS}. */
interface RegisterDefinition {
  readonly name: string;
  readonly bytes: number;
  /** Its type in the target description. */
  readonly type: string;
  readonly group?: string;
  /** Undefined when it is not available. */
  read(source: RegisterSource): Uint8Array | undefined;
  /** The register of the vCPU that can be assigned; others are read only. */
  readonly assigns?: GeneralRegister;
}

interface Feature {
  readonly name: string;
  readonly registers: readonly RegisterDefinition[];
}

/** MSRs that have to be asked for with the registers. */
export const NEEDED_MSRS = [EVENT_MSRS.shadow_gs];

const SEGMENTS = ['cs', 'ss', 'ds', 'es', 'fs', 'gs'] as const;
/** GDB's order. */
const GENERAL = [
  ...(['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rsp'] as const),
  ...(['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'] as const),
];
const TYPES: Readonly<Record<string, string>> = { rsp: 'data_ptr', rbp: 'data_ptr' };

function little(value: bigint, size: number): Uint8Array {
  const bytes = new Uint8Array(8);
  putU64(bytes, 0, value);
  return bytes.subarray(0, size);
}

function general(name: GeneralRegister, type: string, bytes = 8, called: string = name): RegisterDefinition {
  return {
    name: called,
    bytes,
    type,
    assigns: name,
    read: ({ registers }) => registers && little(registers[name], bytes),
  };
}

function system(
  name: string,
  value: (registers: Registers) => bigint | undefined,
  bytes = 8,
  type = 'uint64',
): RegisterDefinition {
  return {
    name,
    bytes,
    type,
    group: 'system',
    read({ registers }) {
      const found = registers && value(registers);
      return found === undefined ? undefined : little(found, bytes);
    },
  };
}

/** `bytes` of the XSAVE area at `at`; in GDB `size` bytes. */
function fpu(
  name: string,
  at: number,
  bytes: number,
  type: string,
  size = bytes,
  group?: string,
): RegisterDefinition {
  return {
    name,
    bytes: size,
    type,
    ...(group && { group }),
    read({ xsave }) {
      if (!xsave) return undefined;
      const value = new Uint8Array(size);
      value.set(xsave.subarray(at, at + bytes));
      return value;
    },
  };
}

/** FXSAVE, 64-bit format (Intel SDM 1, table 10-2): offsets in bytes. */
const FXSAVE = {
  fcw: 0,
  fsw: 2,
  ftw: 4,
  fop: 6,
  fip: 8,
  fcs: 12,
  fdp: 16,
  fds: 20,
  mxcsr: 24,
  st: 32,
  xmm: 160,
};

/** The abridged tag word has a bit for each register that is not empty; GDB wants two. */
const FTAG: RegisterDefinition = {
  ...fpu('ftag', FXSAVE.ftw, 1, 'int', 4, 'float'),
  read({ xsave }) {
    if (!xsave) return undefined;
    let tags = 0;
    for (let i = 0; i < 8; i++) if (!((xsave[FXSAVE.ftw]! >> i) & 1)) tags |= 3 << (2 * i);
    return little(BigInt(tags), 4);
  },
};

const CORE: Feature = {
  name: 'org.gnu.gdb.i386.core',
  registers: [
    ...GENERAL.map((name) => general(name, TYPES[name] ?? 'int64')),
    general('rip', 'code_ptr'),
    general('rflags', 'i386_eflags', 4, 'eflags'),
    ...SEGMENTS.map((name) => ({
      ...system(name, (registers) => BigInt(registers[name].selector), 4, 'int32'),
      group: 'general',
    })),
    ...Array.from({ length: 8 }, (_, i) => fpu(`st${i}`, FXSAVE.st + 16 * i, 10, 'i387_ext')),
    fpu('fctrl', FXSAVE.fcw, 2, 'int', 4, 'float'),
    fpu('fstat', FXSAVE.fsw, 2, 'int', 4, 'float'),
    FTAG,
    fpu('fiseg', FXSAVE.fcs, 2, 'int', 4, 'float'),
    fpu('fioff', FXSAVE.fip, 4, 'int', 4, 'float'),
    fpu('foseg', FXSAVE.fds, 2, 'int', 4, 'float'),
    fpu('fooff', FXSAVE.fdp, 4, 'int', 4, 'float'),
    fpu('fop', FXSAVE.fop, 2, 'int', 4, 'float'),
  ],
};

const SSE: Feature = {
  name: 'org.gnu.gdb.i386.sse',
  registers: [
    ...Array.from({ length: 16 }, (_, i) => fpu(`xmm${i}`, FXSAVE.xmm + 16 * i, 16, 'vec128')),
    fpu('mxcsr', FXSAVE.mxcsr, 4, 'int', 4, 'vector'),
  ],
};

const SEGMENT_BASES: Feature = {
  name: 'org.gnu.gdb.i386.segments',
  registers: (['fs', 'gs'] as const).map((name) => ({
    ...system(`${name}_base`, (registers) => registers[name].base, 8, 'int'),
    group: 'general',
  })),
};

const SYSTEM: Feature = {
  name: 'kvmi.system',
  registers: [
    system('k_gs_base', (registers) => registers.msr(EVENT_MSRS.shadow_gs)),
    ...(['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer'] as const).map((name) =>
      system(name, (registers) => registers[name]),
    ),
    system('gdt_base', (registers) => registers.gdt.base),
    system('idt_base', (registers) => registers.idt.base),
    system('tr', (registers) => BigInt(registers.tr.selector), 4, 'uint32'),
    system('tr_base', (registers) => registers.tr.base),
  ],
};

const FEATURES = [CORE, SSE, SEGMENT_BASES, SYSTEM];

/** Every register, by GDB's number. */
export const REGISTERS: readonly RegisterDefinition[] = FEATURES.flatMap(({ registers }) => registers);

const UNION = `<vector id="v16i8" type="int8" count="16"/><vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/><vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/></union>`;

const FLAGS = [
  'CF',
  '',
  'PF',
  '',
  'AF',
  '',
  'ZF',
  'SF',
  'TF',
  'IF',
  'DF',
  'OF',
  '',
  '',
  'NT',
  '',
  'RF',
  'VM',
  'AC',
];
const EFLAGS = `<flags id="i386_eflags" size="4">${FLAGS.map((name, bit) =>
  name === '' ? '' : `<field name="${name}" start="${bit}" end="${bit}"/>`,
).join('')}<field name="ID" start="21" end="21"/></flags>`;
const FEATURE_TYPES: Readonly<Record<string, string>> = { [CORE.name]: EFLAGS, [SSE.name]: UNION };

/** The target description: what `qXfer:features:read:target.xml` gives. */
export const TARGET_XML = `<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">
<target version="1.0"><architecture>i386:x86-64</architecture>
${FEATURES.map(featureXml).join('\n')}
</target>`;

function featureXml({ name, registers }: Feature): string {
  const lines = registers.map((register) => {
    const group = register.group ? ` group="${register.group}"` : '';
    return `<reg name="${register.name}" bitsize="${8 * register.bytes}" type="${register.type}"${group}/>`;
  });
  return `<feature name="${name}">${FEATURE_TYPES[name] ?? ''}\n${lines.join('\n')}</feature>`;
}

/** A register's bytes as digits; `x` for what is not available. */
export function registerText(register: RegisterDefinition, source: RegisterSource): string {
  const bytes = register.read(source);
  return bytes ? Buffer.from(bytes).toString('hex') : 'x'.repeat(2 * register.bytes);
}

/** The value to assign to a general register, from the bytes that GDB sent; undefined when the size is wrong. */
export function assignedValue(
  register: RegisterDefinition,
  bytes: Uint8Array,
  now: Registers,
): bigint | undefined {
  if (!register.assigns || bytes.length !== register.bytes) return undefined;
  const all = little(now[register.assigns], 8);
  all.set(bytes);
  return getU64(all, 0);
}
