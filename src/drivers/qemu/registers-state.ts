import { STATE_SIZE } from '../../abi/state.ts';
import { kvmRegs } from '../../abi/x86.ts';
import { KvmiError } from '../../error.ts';
import { CapabilityError } from '../../machine/capabilities.ts';
import { registerFromHex } from '../../rsp/hex.ts';
import {
  type CpuState,
  clearBlock,
  finishBlock,
  putRegister,
  putSegment,
  putTable,
  SEGMENT_NAMES,
  type SegmentCache,
} from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';
import type { QmpConnection } from './qmp.ts';

const CONTROL_REGISTERS = ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer'] as const;
const REASON = "QEMU's gdbstub and monitor do not show it";

/**
 * The state of all vCPUs from the gdbstub and the monitor's `info registers`, which know less than the device
 * state: of the MSRs only EFER and the bases of fs and gs, and nothing of XSAVE.
 */
export async function readRegistersState(
  qmp: QmpConnection,
  gdb: GdbClient,
  vcpus: readonly number[],
): Promise<ReadonlyMap<number, CpuState>> {
  const states = new Map<number, CpuState>();
  for (const vcpu of vcpus) {
    const registers = await gdb.readRegisters(vcpu);
    const text = await qmp.hmp('info registers', vcpu);
    const value = (name: string) => {
      const { offset, size } = gdb.register(name);
      return registerFromHex(registers.toString('hex', offset, offset + size));
    };
    states.set(vcpu, new RegistersCpu(value, text));
  }
  return states;
}

/** Whether a vCPU waits for an interrupt, also while the VM runs. */
export async function isHalted(qmp: QmpConnection, vcpu: number): Promise<boolean> {
  return isHaltedIn(await qmp.hmp('info registers', vcpu));
}

function isHaltedIn(registers: string): boolean {
  return /HLT=1/.test(registers);
}

class RegistersCpu implements CpuState {
  readonly #block = new Uint8Array(STATE_SIZE);
  readonly #msrs: ReadonlyMap<number, bigint>;
  readonly started: boolean;
  readonly halted: boolean;
  readonly apicId = undefined;
  readonly rip: bigint;

  constructor(value: (name: string) => bigint, text: string) {
    const block = this.#block;
    clearBlock(block);
    for (const { name } of kvmRegs.fields) {
      const register = name as 'rax';
      putRegister(block, register, value(name === 'rflags' ? 'eflags' : name));
    }
    for (const name of CONTROL_REGISTERS) putRegister(block, name, value(name));
    for (const name of SEGMENT_NAMES) putSegment(block, name, parseSegment(text, name));
    for (const name of ['gdt', 'idt'] as const) {
      const table = new RegExp(`^${name}=\\s+([0-9a-f]{8,16}) ([0-9a-f]{8})`, 'im').exec(text);
      if (table === null) throw unreadable(name);
      putTable(block, name, BigInt(`0x${table[1]}`), Number.parseInt(table[2]!, 16));
    }
    this.#msrs = new Map([
      [0xc0000080, value('efer')],
      [0xc0000100, value('fs_base')],
      [0xc0000101, value('gs_base')],
      [0xc0000102, value('k_gs_base')],
    ]);
    finishBlock(block, (index) => this.#msrs.get(index));
    this.rip = value('rip');
    // After a reset a vCPU is at the reset vector in real mode; an application processor waits there.
    this.halted = isHaltedIn(text);
    this.started = !(this.rip === 0xfff0n && (value('cr0') & 1n) === 0n && this.halted);
  }

  writeBlock(into: Uint8Array): void {
    into.set(this.#block);
  }

  msr(index: number): bigint | undefined {
    return this.#msrs.get(index);
  }

  get xcr0(): bigint {
    throw new CapabilityError('xcr', REASON);
  }

  writeXsave(): void {
    throw new CapabilityError('xsave', REASON);
  }

  mtrrType(): number {
    throw new CapabilityError('mtrr', REASON);
  }
}

/** A line such as `CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]`. */
function parseSegment(text: string, name: string): SegmentCache {
  const pattern = new RegExp(`^${name}\\s*=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})`, 'im');
  const match = pattern.exec(text);
  if (match === null) throw unreadable(name);
  return {
    selector: Number.parseInt(match[1]!, 16),
    base: BigInt(`0x${match[2]}`),
    limit: Number.parseInt(match[3]!, 16),
    flags: Number.parseInt(match[4]!, 16),
  };
}

function unreadable(name: string): KvmiError {
  return new KvmiError('E_QEMU_STATE', `QEMU's "info registers" does not show ${name.toUpperCase()}`);
}
