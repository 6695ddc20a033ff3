import { getU32, getU64 } from '../abi/bytes.ts';
import {
  type ControlRegister,
  EVENT_MSRS,
  type GeneralRegister,
  getRegister,
  type KvmDtable,
  type KvmRegs,
  type KvmSegment,
  kvmDtable,
  kvmRegs,
  kvmSegment,
  kvmSregs,
  MSRS_OFFSET,
  putRegister,
  REGS_OFFSET,
  SREGS_OFFSET,
} from '../abi/index.ts';

const CONTROL_REGISTERS = ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apic_base'] as const;
const SEGMENTS = ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const;
const TABLES = ['gdt', 'idt'] as const;

/** Where the MSRs are: at fixed places in the block of an event, as a list in a VCPU_GET_REGISTERS reply. */
export type MsrLayout = 'event' | 'list';

/** The list of a reply: `nmsrs` and its padding, then entries of index, reserved and data. */
const LIST_ENTRY = { size: 16, data: 8 } as const;
const LIST_START = MSRS_OFFSET + 8;

const eventMsrAt = new Map(
  Object.values(EVENT_MSRS).map((index, position) => [index as number, MSRS_OFFSET + 8 * position]),
);

/**
 * The registers of a vCPU, over the bytes that came from the host side: each is decoded when it is asked for.
 *
 * General registers, rip and rflags can be assigned. The change is local until the view is given to
 * `vcpu.setRegisters` or to the answer of an event.
 */
class RegistersView {
  #bytes: Uint8Array;
  #changed = false;
  readonly #msrs: MsrLayout;

  constructor(bytes: Uint8Array, msrs: MsrLayout) {
    this.#bytes = bytes;
    this.#msrs = msrs;
  }

  static {
    const define = (name: string, get: (view: RegistersView) => unknown): void => {
      Object.defineProperty(RegistersView.prototype, name, {
        get(this: RegistersView) {
          return get(this);
        },
        enumerable: true,
      });
    };
    for (const name of kvmRegs.fields.map((field) => field.name as GeneralRegister)) {
      Object.defineProperty(RegistersView.prototype, name, {
        get(this: RegistersView) {
          return getRegister(this.#bytes, name);
        },
        set(this: RegistersView, value: bigint) {
          this.#set(name, value);
        },
        enumerable: true,
      });
    }
    for (const name of CONTROL_REGISTERS) define(name, (view) => getRegister(view.#bytes, name));
    for (const name of SEGMENTS) {
      const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
      define(name, (view) => kvmSegment.read(view.#bytes, at));
    }
    for (const name of TABLES) {
      const at = SREGS_OFFSET + kvmSregs.offsetOf(name);
      define(name, (view) => kvmDtable.read(view.#bytes, at));
    }
  }

  #set(name: GeneralRegister, value: bigint): void {
    if (!this.#changed) this.#bytes = this.#bytes.slice();
    this.#changed = true;
    putRegister(this.#bytes, name, value);
  }

  /** The same values, to be changed on their own. */
  copy(): Registers {
    return registersOf(this.#bytes.slice(), this.#msrs);
  }

  /** Operand size of the code that runs, in bytes: 8, 4 or 2. */
  get mode(): number {
    return this.#bytes[0]!;
  }

  /** Whether a register was assigned. */
  get changed(): boolean {
    return this.#changed;
  }

  /**
   * The bytes: mode, kvm_regs at 8 and kvm_sregs at 152, as in a `vcpuState` block of abi/. MSRs follow, in
   * the layout of where the view came from.
   */
  get state(): Uint8Array {
    return this.#bytes;
  }

  /** kvm_regs (144 bytes), not copied. */
  get general(): Uint8Array {
    return this.#bytes.subarray(REGS_OFFSET, REGS_OFFSET + kvmRegs.size);
  }

  /** An MSR that came with the registers: nine in an event, those that were asked for otherwise. */
  msr(index: number): bigint | undefined {
    if (this.#msrs === 'event') {
      const at = eventMsrAt.get(index);
      return at === undefined ? undefined : getU64(this.#bytes, at);
    }
    for (let at = LIST_START; at + LIST_ENTRY.size <= this.#bytes.length; at += LIST_ENTRY.size) {
      if (getU32(this.#bytes, at) === index) return getU64(this.#bytes, at + LIST_ENTRY.data);
    }
    return undefined;
  }
}

/** {@link RegistersView} with a property for each register. */
export type Registers = RegistersView &
  KvmRegs &
  Readonly<Record<ControlRegister, bigint>> &
  Readonly<Record<(typeof SEGMENTS)[number], KvmSegment>> &
  Readonly<Record<(typeof TABLES)[number], KvmDtable>>;

/** A view over `bytes`, which nobody changes afterwards. */
export function registersOf(bytes: Uint8Array, msrs: MsrLayout): Registers {
  return new RegistersView(bytes, msrs) as Registers;
}

/** kvm_regs as bytes, from a view or from values. */
export function generalBytes(registers: Registers | KvmRegs): Uint8Array {
  if (registers instanceof RegistersView) return registers.general;
  const bytes = new Uint8Array(kvmRegs.size);
  kvmRegs.write(bytes, 0, registers);
  return bytes;
}
