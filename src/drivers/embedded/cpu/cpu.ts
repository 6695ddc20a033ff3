import type { Answer } from '../../../machine/index.ts';
import type { Apic } from '../devices/apic.ts';
import type { Clock } from '../devices/clock.ts';
import type { Ports } from '../devices/ports.ts';
import type { GuestMemory } from '../memory.ts';
import type { MemoryView, MemoryViews } from '../views.ts';
import type { CodeListener } from './code.ts';
import { CR0, EFER, FLAG } from './constants.ts';
import { GuestEvent } from './event.ts';
import { Msrs } from './msr.ts';
import type { OpBlock, OpCache, OpPage } from './op.ts';
import { Segment, TableRegister } from './segment.ts';
import { ATTENTION } from './signals.ts';
import { CS, SLOTS } from './slots.ts';
import { type CpuStop, Stops } from './stops.ts';
import { Tlb } from './tlb.ts';
import { resetXsave, XSAVE_SIZE } from './xsave.ts';

/** What a processor shares with the rest of its machine. */
export interface CpuSurroundings {
  readonly memory: GuestMemory;
  readonly code: OpCache;
  readonly views: MemoryViews;
  readonly ports: Ports;
  readonly clock: Clock;
}

/** Most pages that one instruction, or the delivery of one event, touches. */
const GRANTS = 32;

/**
 * The state of one processor. What it does with it is in the files beside: `run.ts` is the loop, `decoder.ts`
 * finds the instructions, `mmu.ts` their memory.
 */
export class Cpu implements CodeListener {
  /** Index of the vCPU, its APIC id. */
  readonly index: number;
  readonly memory: GuestMemory;
  readonly code: OpCache;
  readonly views: MemoryViews;
  readonly ports: Ports;
  readonly clock: Clock;
  readonly apic: Apic;
  /** The backing store of guest memory. */
  readonly ram: DataView;

  /** General registers, segment bases and constants; see slots.ts. */
  readonly r = new Int32Array(SLOTS);
  readonly r16 = new Uint16Array(this.r.buffer);
  readonly r8 = new Uint8Array(this.r.buffer);
  /** Instruction pointer. While a block runs it is where the block began. */
  ripLo = 0;
  ripHi = 0;

  /* Arithmetic flags; see alu.ts. */
  cf = 0;
  zr = 1;
  sr = 0;
  or = 0;
  ar = 0;
  pr = 1;
  /** The other bits of rflags. Change with setSystemFlags. */
  systemFlags = 0;

  /** High half of the 64-bit result that a function just returned the low half of. */
  hi = 0;
  /** The last effective address. */
  eaLo = 0;
  eaHi = 0;
  /** Where the operand lies that modify… in mmu.ts read, or -1 when it must be stored the slow way. */
  modifyAt = -1;
  /** What page traps allow in the frame that was resolved last. */
  allowed = 7;
  /** Operands that cross a page, and results of mmu.ts that need more room than a number. */
  readonly bounce = new DataView(new ArrayBuffer(32));

  readonly segments: readonly Segment[] = Array.from({ length: 8 }, () => new Segment());
  readonly gdtr = new TableRegister();
  readonly idtr = new TableRegister();
  /** Current privilege level. Change with setCpl. */
  cpl = 0;
  /** Whether code is decoded as 64-bit code, from cs.l and EFER.LMA. */
  mode64 = false;
  cr0 = 0;
  cr2Lo = 0;
  cr2Hi = 0;
  cr3Lo = 0;
  cr3Hi = 0;
  cr4 = 0;
  efer = 0;
  xcr0 = 1;
  /** dr0 to dr7 in halves. */
  readonly dr = new Int32Array(16);
  readonly msrs: Msrs;
  /** Extended state in the layout of XSAVE. */
  readonly xsave = new Uint8Array(XSAVE_SIZE);
  readonly xsaveData = new DataView(this.xsave.buffer);
  /** Counts changes of what is neither a general register nor rip, rflags or cr2. */
  systemEpoch = 0;

  readonly userTlb = new Tlb<OpPage>();
  readonly kernelTlb = new Tlb<OpPage>();
  /** Of the current privilege level. */
  tlb = this.kernelTlb;
  readTlb = this.kernelTlb.read;
  writeTlb = this.kernelTlb.write;
  view: MemoryView;

  /** The page of code whose linear address is in r[CODE_BASE], or undefined when it must be looked up. */
  codePage: OpPage | undefined = undefined;
  block: OpBlock | undefined = undefined;
  /** Position in `block` of the instruction that runs, or -1 outside a block, when rip is exact. */
  position = -1;

  /** See {@link ATTENTION}. */
  attention = 0;
  /** Instructions that may still run before the loop returns. */
  left = 0;
  /** Armed traps ({@link ARMED}), and MSRs whose writes are. */
  armed = 0;
  readonly armedMsrs = new Set<number>();

  readonly stops = new Stops();
  stop: CpuStop;
  /** Where the instruction that stopped is, and its length. */
  stopLo = 0;
  stopHi = 0;
  stopLength = 0;
  /** An event was being delivered when the vCPU stopped, not an instruction executed. */
  delivering = false;
  /** Another stop came between the last singlestep stop and now. */
  stepFailed = false;
  /** What an instruction raised, valid while FAULT is thrown. */
  readonly fault = new GuestEvent();
  /** To be delivered before the next instruction, when ATTENTION.event is set and `eventPending`. */
  readonly event = new GuestEvent();
  eventPending = false;
  /** An exception from outside that waits its turn. */
  readonly injection = new GuestEvent();
  injectionPending = false;

  /**
   * Reports the page stop in `stop` from within the instruction. True when the access goes on and nothing else
   * changed; otherwise the answer was applied, or is awaited, and the instruction has to begin again.
   */
  onPageStop: (() => boolean) | undefined = undefined;
  /** Counts what is changed from outside that an instruction may have looked at already. */
  changes = 0;
  /** The block that was cut short because an access in it was granted, and its length. */
  cutBlock: OpBlock | undefined = undefined;
  cutCount = 0;

  /** Accesses that the next instruction may do in spite of page traps: gfn and access, in pairs. */
  readonly grants = new Float64Array(2 * GRANTS);
  grantCount = 0;
  /** The descriptor-table instruction at rip was allowed. */
  descriptorGranted = false;
  /** The probe at rip was handled. */
  probeGranted = false;
  /** The grants hold until the current REP instruction is complete, and cover everything it does. */
  repGranted = false;
  substitute: Answer['substitute'] = undefined;

  constructor(index: number, apic: Apic, surroundings: CpuSurroundings) {
    this.index = index;
    this.apic = apic;
    this.memory = surroundings.memory;
    this.code = surroundings.code;
    this.views = surroundings.views;
    this.ports = surroundings.ports;
    this.clock = surroundings.clock;
    this.ram = surroundings.memory.data;
    this.view = surroundings.views.get(0)!;
    this.msrs = new Msrs(this);
    this.stop = this.stops.singlestep;
    this.reset();
  }

  /** The state after INIT, but in flat 32-bit protected mode: this machine has no real mode. */
  reset(): void {
    this.r.fill(0);
    this.ripLo = 0;
    this.ripHi = 0;
    this.cf = this.sr = this.or = this.ar = 0;
    this.zr = this.pr = 1;
    for (let i = 0; i < 6; i++) this.segments[i]!.setFlat(i === CS ? 8 : 16, i === CS ? 11 : 3, 0, false);
    this.segments[6]!.setNull(0, 0);
    this.segments[7]!.setNull(0, 0);
    this.gdtr.set(0, 0, 0xffff);
    this.idtr.set(0, 0, 0xffff);
    this.cr0 = CR0.PE | CR0.ET;
    this.cr2Lo = this.cr2Hi = this.cr3Lo = this.cr3Hi = this.cr4 = this.efer = 0;
    this.xcr0 = 1;
    this.dr.fill(0);
    this.dr[12] = 0xffff_0ff0 | 0;
    this.dr[14] = 0x400;
    this.msrs.reset();
    resetXsave(this.xsave);
    this.apic.reset();
    this.attention &= ATTENTION.request | ATTENTION.step;
    this.position = -1;
    this.eventPending = false;
    this.injectionPending = false;
    this.stepFailed = false;
    this.delivering = false;
    this.clearGrants();
    this.setSystemFlags(0);
    this.setCpl(0);
    this.updateMode();
    this.flush();
  }

  get longMode(): boolean {
    return (this.efer & EFER.LMA) !== 0;
  }

  get halted(): boolean {
    return (this.attention & ATTENTION.halt) !== 0;
  }

  get dead(): boolean {
    return (this.attention & ATTENTION.dead) !== 0;
  }

  setSystemFlags(flags: number): void {
    this.systemFlags = flags;
    this.attention =
      flags & FLAG.TF ? this.attention | ATTENTION.trapFlag : this.attention & ~ATTENTION.trapFlag;
    this.updateInterrupt();
  }

  /** To be called when something changed that decides whether an interrupt can be delivered. */
  updateInterrupt(): void {
    if ((this.systemFlags & FLAG.IF) !== 0 && this.apic.pending() >= 0) this.attention |= ATTENTION.interrupt;
    else this.attention &= ~ATTENTION.interrupt;
  }

  setCpl(cpl: number): void {
    this.cpl = cpl;
    this.tlb = cpl === 3 ? this.userTlb : this.kernelTlb;
    this.readTlb = this.tlb.read;
    this.writeTlb = this.tlb.write;
    this.leaveCodePage();
    this.systemEpoch++;
  }

  /** To be called when cs or EFER changed. */
  updateMode(): void {
    this.mode64 = this.longMode && this.segments[CS]!.long;
    this.leaveCodePage();
    this.systemEpoch++;
  }

  setView(view: MemoryView): void {
    this.view = view;
    this.flush();
  }

  /** Forgets every translation. */
  flush(): void {
    this.changes++;
    this.kernelTlb.flush();
    this.userTlb.flush();
    this.leaveCodePage();
  }

  /** Makes the next instruction look up its page of code. */
  leaveCodePage(): void {
    this.codePage = undefined;
  }

  codeAdded(frame: number): void {
    this.kernelTlb.forbidWrites(frame);
    this.userTlb.forbidWrites(frame);
  }

  codeDropped(): void {
    this.kernelTlb.flushCode();
    this.userTlb.flushCode();
    this.leaveCodePage();
  }

  /** Makes `event` the one to be delivered before the next instruction. */
  queueEvent(event: GuestEvent): void {
    this.event.copy(event);
    this.eventPending = true;
    this.attention |= ATTENTION.event;
  }

  /** Queues an exception from outside, which waits for the event that is pending. */
  inject(event: GuestEvent): void {
    this.injection.copy(event);
    this.injectionPending = true;
    this.attention |= ATTENTION.event;
  }

  /** Allows the next instruction an access to a frame. */
  grant(gfn: number, access: number): void {
    this.attention |= ATTENTION.grant;
    for (let i = 0; i < 2 * this.grantCount; i += 2) {
      if (this.grants[i] !== gfn) continue;
      this.grants[i + 1] = this.grants[i + 1]! | access;
      return;
    }
    if (this.grantCount === GRANTS) return;
    this.grants[2 * this.grantCount] = gfn;
    this.grants[2 * this.grantCount + 1] = access;
    this.grantCount++;
  }

  /** Makes the block that runs end after the current instruction. */
  cut(): void {
    if (this.position < 0 || this.cutBlock !== undefined) return;
    this.cutBlock = this.block;
    this.cutCount = this.block!.count;
    this.block!.count = 0;
  }

  /** Gives a block that was cut its length back. */
  uncut(): void {
    if (this.cutBlock === undefined) return;
    this.cutBlock.count = this.cutCount;
    this.cutBlock = undefined;
  }

  /** Which part of `access` was granted. */
  granted(gfn: number): number {
    if (this.repGranted) return 7;
    for (let i = 0; i < 2 * this.grantCount; i += 2) if (this.grants[i] === gfn) return this.grants[i + 1]!;
    return 0;
  }

  /** Lets the next instruction run in spite of its probe. */
  grantProbe(): void {
    this.attention |= ATTENTION.grant;
    this.probeGranted = true;
  }

  clearGrants(): void {
    this.attention &= ~ATTENTION.grant;
    this.grantCount = 0;
    this.descriptorGranted = false;
    this.probeGranted = false;
    this.repGranted = false;
    this.substitute = undefined;
  }
}
