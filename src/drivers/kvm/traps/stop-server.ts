import { KVM_EXIT, kvmDebugExit, kvmMsrExit } from '../../../abi/kvm.ts';
import { STATE_SIZE } from '../../../abi/state.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { type Awaitable, then } from '../../../awaitable.ts';
import {
  ACCESS,
  type Answer,
  CONTINUE,
  type MachineHandler,
  type Stop,
  translate,
} from '../../../machine/index.ts';
import type { VmmMemory } from '../slots/memory.ts';
import type { Linger } from '../thread/linger.ts';
import type { HoldReason } from '../thread/vcpu-thread.ts';
import type { KvmVcpu } from '../vcpu.ts';
import { DR6 } from './guest-debug.ts';
import type { Traps } from './traps.ts';

const INT3_LENGTH = 1;
/** All-ones on the wire. */
const NO_GPA = 2 ** 64;

/** What happens with a vCPU from when it is held until it goes on. */
export class StopServer {
  handler: MachineHandler | undefined;
  readonly #traps: Traps;
  readonly #memory: VmmMemory;
  readonly #linger: Linger;

  constructor(traps: Traps, memory: VmmMemory, linger: Linger) {
    this.#traps = traps;
    this.#memory = memory;
    this.#linger = linger;
  }

  serve(vcpu: KvmVcpu, reason: HoldReason): Awaitable<void> {
    vcpu.learn();
    vcpu.runTasks();
    if (reason === 'exit' && this.#traps.accesses.claims(vcpu)) return this.#access(vcpu);
    if (reason === 'exit' && isDebugRegisterHit(vcpu)) return this.#hit(vcpu);
    const stop = reason === 'exit' ? this.#stopOf(vcpu) : this.#traps.pages.stopOf(vcpu);
    if (!stop) return this.#finish(vcpu);
    return then(this.#report(vcpu, stop), (answer) => {
      if (answer.action === 'crash') return crash(vcpu);
      this.#effect(vcpu, stop, answer);
      return this.#finish(vcpu);
    });
  }

  #report(vcpu: KvmVcpu, stop: Stop): Awaitable<Answer> {
    return this.handler ? this.handler.stop(vcpu, stop) : CONTINUE;
  }

  /** Answers requests, reports an injection, and lets the vCPU go on. */
  #finish(vcpu: KvmVcpu): Awaitable<void> {
    vcpu.runTasks();
    if (vcpu.requested && this.handler) {
      vcpu.requested = false;
      return then(this.handler.request(vcpu), (end) => (end === 'crash' ? crash(vcpu) : this.#finish(vcpu)));
    }
    const { trap } = vcpu;
    if (trap) {
      vcpu.trap = undefined;
      return then(this.#report(vcpu, trap), () => this.#finish(vcpu));
    }
    vcpu.requested = false;
    vcpu.thread?.release();
    if (vcpu.thread?.phase === 'agent') this.#linger.expect();
  }

  /** What the exit that the agent has reported means; undefined when nobody is to be told. */
  #stopOf(vcpu: KvmVcpu): Stop | undefined {
    const { page } = vcpu.thread!;
    if (page.exitReason === KVM_EXIT.X86_WRMSR) return this.#msrStop(vcpu);
    const { exception, pc } = kvmDebugExit.read(page.exit, 0);
    if (exception === VECTOR.BP) return this.#breakpointStop(vcpu, pc);
    this.#traps.steppedOver(vcpu);
    return this.#traps.isSingleStepping(vcpu) ? { kind: 'singlestep', failed: false } : undefined;
  }

  /** An access to a page that has been taken away. Retried, it is denied again as long as the page denies it. */
  #access(vcpu: KvmVcpu): Awaitable<void> {
    const { accesses } = this.#traps;
    const stop = accesses.stopOf(vcpu);
    return then(stop ? this.#report(vcpu, stop) : CONTINUE, ({ action, substitute }) => {
      if (action === 'crash') return crash(vcpu);
      if (accesses.settled(vcpu, action === 'continue')) return this.#finish(vcpu);
      if (action !== 'continue' && stop?.access === ACCESS.execute) return this.#finish(vcpu);
      if (action !== 'continue' && accesses.stopOf(vcpu)) {
        // In between, others are to be heard.
        return Promise.resolve().then(() => this.#access(vcpu));
      }
      if (accesses.complete(vcpu, substitute)) this.#traps.stepOver(vcpu);
      return this.#finish(vcpu);
    });
  }

  /** In front of an instruction that a debug register names: after the handler the vCPU is stepped over it. */
  #hit(vcpu: KvmVcpu): Awaitable<void> {
    const address = vcpu.instructionPointer();
    const handler = this.#traps.hardware.handlerAt(address);
    return then(handler?.(vcpu), (answer) => {
      const goesOn = answer !== 'retry' && vcpu.instructionPointer() === address;
      if (goesOn && this.#traps.isAtBreakpoint(vcpu)) this.#traps.stepOver(vcpu);
      return this.#finish(vcpu);
    });
  }

  #breakpointStop(vcpu: KvmVcpu, pc: bigint): Stop {
    const state = new Uint8Array(STATE_SIZE);
    vcpu.readState(state);
    const gpa = translate(this.#memory, state, pc) as number | undefined;
    return { kind: 'breakpoint', gpa: gpa ?? NO_GPA, length: INT3_LENGTH };
  }

  #msrStop(vcpu: KvmVcpu): Stop | undefined {
    const { index, data } = kvmMsrExit.read(vcpu.thread!.page.exit, 0);
    if (this.#traps.isMsrTrapped(vcpu, index)) {
      return { kind: 'msr', msr: index, old: vcpu.readMsr(index) ?? 0n, new: data };
    }
    completeMsrWrite(vcpu);
    return undefined;
  }

  /** What a stop was about happens, or not. */
  #effect(vcpu: KvmVcpu, stop: Stop, { action, value }: Answer): void {
    switch (stop.kind) {
      case 'msr':
        writeMsr(vcpu, stop.msr, action === 'refuse' ? undefined : (value ?? stop.new));
        break;
      case 'breakpoint':
        if (action === 'continue') vcpu.deliver(VECTOR.BP);
        break;
      case 'page':
        if (this.#traps.pages.answered(vcpu, action === 'continue' ? 'go on' : 'again')) {
          this.#traps.stepOver(vcpu);
        }
        break;
    }
  }
}

function crash(vcpu: KvmVcpu): void {
  vcpu.requested = false;
  vcpu.thread?.crash();
}

function isDebugRegisterHit({ thread }: KvmVcpu): boolean {
  if (thread!.page.exitReason !== KVM_EXIT.DEBUG) return false;
  const { exception, dr6 } = kvmDebugExit.read(thread!.page.exit, 0);
  return exception !== VECTOR.BP && (dr6 & DR6.SINGLESTEP) === 0n;
}

/** Carries out a write to an MSR that nobody is to be told of. */
export function completeMsrWrite(vcpu: KvmVcpu): void {
  const { page } = vcpu.thread!;
  if (page.exitReason !== KVM_EXIT.X86_WRMSR) return;
  const { index, data } = kvmMsrExit.read(page.exit, 0);
  writeMsr(vcpu, index, data);
}

/** Completes a write to an MSR that has left the guest; the guest gets #GP when it is not possible. */
function writeMsr(vcpu: KvmVcpu, index: number, value: bigint | undefined): void {
  const accepted = value !== undefined && vcpu.writeMsr(index, value);
  vcpu.thread!.page.exit[0] = accepted ? 0 : 1;
}
