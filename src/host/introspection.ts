import { ERRNO } from '../abi/errno.ts';
import {
  type IntrospectionRequest,
  IOCTL_TABLES,
  kvmIntrospectionFeature,
  kvmIntrospectionHook,
} from '../abi/ioctl.ts';
import type { Awaitable } from '../awaitable.ts';
import { KvmiError, messageOf } from '../error.ts';
import type { Machine, MachineHandler, PreUnhookReason, ProbePort, Vcpu } from '../machine/index.ts';
import type { Channel } from '../transport/index.ts';
import { DIALECTS, type Dialect, type DialectName } from '../wire/index.ts';
import { Hook } from './hook.ts';
import { HookLog, type Log, SILENT, vmLabel } from './log.ts';
import { probePort } from './probes.ts';

/** KVM_CHECK_EXTENSION answers this version. */
const KVMI_VERSION = 1;

export interface IntrospectionOptions {
  /** The dialect of the tools that are hooked; default v12. */
  readonly dialect?: DialectName;
  /** The counterpart of the module parameter kvm.introspection: false refuses every request. Default true. */
  readonly enabled?: boolean;
  readonly log?: Log;
  /** Turns the descriptor of a HOOK argument into the socket behind it; undefined when it is none. */
  readonly openSocket?: (fd: number) => Awaitable<Channel | undefined>;
  /** The machine is about to be taken away; see MachineHandler.preUnhook. */
  readonly onPreUnhook?: (reason: PreUnhookReason) => Awaitable<void>;
  /** The machine is gone; whatever was hooked has been unhooked. */
  readonly onClosed?: (error?: Error) => void;
}

/** What HOOK takes: a socket whose other end is the tool, and the UUID for log lines. */
export interface HookRequest {
  /** The connection, or a descriptor for IntrospectionOptions.openSocket. */
  readonly socket?: Channel;
  readonly fd?: number;
  readonly padding?: number;
  /** 16 bytes; default: the machine's. */
  readonly uuid?: Uint8Array;
}

const REQUEST_NAMES = new Map<number, IntrospectionRequest>(
  Object.values(IOCTL_TABLES).flatMap(({ requests }) =>
    (Object.entries(requests) as [IntrospectionRequest, number][]).map(
      ([name, number]): [number, IntrospectionRequest] => [number, name],
    ),
  ),
);

/**
 * The introspection subsystem of one virtual machine: hook, unhook, permissions and pre-unhook, as VM
 * ioctls and as methods that return what the ioctl would: 0 or a negative errno.
 *
 * Requests are carried out one after another. A machine stays hooked when the tool hangs up, until
 * `unhook` or until the machine is gone.
 */
export class Introspection {
  readonly #machine: Machine;
  readonly #dialect: Dialect;
  readonly #options: IntrospectionOptions;
  readonly #enabled: boolean;
  #hook: Hook | undefined;
  #mutex: Promise<unknown> = Promise.resolve();
  #lastError: unknown;
  #machineGone = false;
  #machineError: Error | undefined;

  constructor(machine: Machine, options: IntrospectionOptions = {}) {
    this.#machine = machine;
    this.#options = options;
    this.#dialect = DIALECTS[options.dialect ?? 'v12'];
    this.#enabled = options.enabled ?? true;
  }

  /** Whether a tool is hooked, connected or not. */
  get hooked(): boolean {
    return this.#hook !== undefined;
  }

  /** The machine's own probes, for the hooked tool when it is in this process; undefined where it has none. */
  get probes(): ProbePort | undefined {
    const { probes } = this.#machine;
    return probes && probePort(probes, () => this.#hook?.vcpus);
  }

  /** Resolves when the tool's connection has ended; at once when nothing is hooked. */
  get disconnected(): Promise<void> {
    return this.#hook?.disconnected ?? Promise.resolve();
  }

  /** Whether the machine ended, or cannot be reached any more, while it was hooked. */
  get machineGone(): boolean {
    return this.#machineGone;
  }

  /** Why it has gone; undefined when it was shut down, or is there. */
  get machineError(): Error | undefined {
    return this.#machineError;
  }

  /** How long the hooked tool has owed an answer to an event without a sign of life, in ms. */
  stalledFor(): number {
    return this.#hook?.stalledFor() ?? 0;
  }

  /** What made the last request fail, where an errno alone does not tell. */
  get lastError(): unknown {
    return this.#lastError;
  }

  /** KVM_CHECK_EXTENSION(`capability`): the KVMI version, or 0. */
  checkExtension(capability: number): number {
    const table = IOCTL_TABLES[this.#dialect.name];
    if (capability !== table.capability) return 0;
    return this.#enabled || !table.hidesWhenDisabled ? KVMI_VERSION : 0;
  }

  /**
   * Carries out an introspection ioctl of the VM.
   *
   * @param request the request number, of any series.
   * @param argument the bytes that the argument points to; undefined when they cannot be read.
   * @returns 0 or a negative errno: ENOTTY for what is no introspection request.
   */
  async ioctl(request: number, argument?: Uint8Array): Promise<number> {
    switch (REQUEST_NAMES.get(request)) {
      case 'HOOK':
        return this.#locked(() => this.#hookIoctl(argument));
      case 'UNHOOK':
        return this.unhook();
      case 'COMMAND':
        return this.#locked(() => this.#featureIoctl('commands', argument));
      case 'EVENT':
        return this.#locked(() => this.#featureIoctl('events', argument));
      case 'PREUNHOOK':
        return this.preUnhook();
      case undefined:
        return -ERRNO.ENOTTY;
    }
  }

  /** KVM_INTROSPECTION_HOOK. Errors: EPERM, EINVAL, EEXIST, EBUSY, ENOMEM, in that order; see docs. */
  hook(request: HookRequest): Promise<number> {
    return this.#locked(() => this.#hookNow(request));
  }

  /** KVM_INTROSPECTION_UNHOOK: waits for the receiver and every vCPU in an event. EPERM, otherwise 0. */
  unhook(): Promise<number> {
    return this.#locked(async () => {
      await this.#unhookNow();
      return 0;
    });
  }

  /** KVM_INTROSPECTION_COMMAND. Errors: EPERM, EINVAL, EFAULT (not hooked), EPERM (always allowed). */
  command(feature: { allow: number; id: number }): Promise<number> {
    return this.#locked(() => this.#feature('commands', feature));
  }

  /** KVM_INTROSPECTION_EVENT. Errors: EPERM, EINVAL, EFAULT (not hooked). */
  event(feature: { allow: number; id: number }): Promise<number> {
    return this.#locked(() => this.#feature('events', feature));
  }

  /** KVM_INTROSPECTION_PREUNHOOK. Errors: EPERM, EFAULT (not hooked), ENOENT (the tool does not want to know). */
  preUnhook(): Promise<number> {
    return this.#locked(() => {
      const hook = this.#hook;
      if (!hook) return -ERRNO.EFAULT;
      if (!hook.vmEvents.has('UNHOOK') || !hook.sendVmEvent('UNHOOK', {})) return -ERRNO.ENOENT;
      return 0;
    });
  }

  /** Every request takes the mutex for its whole duration, after the check that applies to all. */
  #locked(run: () => Awaitable<number>): Promise<number> {
    if (!this.#enabled) return Promise.resolve(-ERRNO.EPERM);
    const result = this.#mutex.then(run);
    this.#mutex = result.catch(() => undefined);
    return result;
  }

  #hookIoctl(argument: Uint8Array | undefined): Awaitable<number> {
    if (!argument || argument.length < kvmIntrospectionHook.size) return -ERRNO.EFAULT;
    return this.#hookNow(kvmIntrospectionHook.read(argument, 0));
  }

  async #hookNow(request: HookRequest): Promise<number> {
    if (request.padding) return -ERRNO.EINVAL;
    if (this.#hook) return -ERRNO.EEXIST;
    const channel = request.socket ?? (await this.#options.openSocket?.(request.fd ?? -1));
    if (!channel) return -ERRNO.EINVAL;
    const { name, uuid } = this.#machine;
    const log = new HookLog(this.#options.log ?? SILENT, vmLabel(name, request.uuid ?? uuid));
    const hook = new Hook(this.#machine, channel, this.#dialect, log);
    try {
      await this.#machine.attach(this.#handler(hook));
    } catch (error) {
      this.#lastError = error;
      const message = `hooking: ${messageOf(error)}`;
      if (!(error instanceof KvmiError && error.code === 'E_BUSY')) {
        log.error(message);
        return -ERRNO.ENOMEM;
      }
      // That somebody else holds the machine is an answer, not a fault.
      log.info(message);
      return -ERRNO.EBUSY;
    }
    this.#hook = hook;
    hook.start();
    return 0;
  }

  async #unhookNow(): Promise<void> {
    const hook = this.#hook;
    if (!hook) return;
    hook.end();
    await hook.completion;
    await this.#machine.detach();
    this.#hook = undefined;
  }

  #handler(hook: Hook): MachineHandler {
    return {
      stop: (vcpu, stop) => (hook.vcpus[vcpu.index] ?? hook.addVcpu(vcpu)).stop(stop),
      request: (vcpu) => (hook.vcpus[vcpu.index] ?? hook.addVcpu(vcpu)).serve(),
      vcpuCreated: (vcpu: Vcpu) => hook.vcpuCreated(vcpu),
      preUnhook: (reason) => this.#options.onPreUnhook?.(reason),
      closed: (error) => this.#machineClosed(error),
    };
  }

  /** The end of the VM is an unhook (kvmi.rst: "when the VM is destroyed"). */
  #machineClosed(error: Error | undefined): void {
    this.#machineGone = true;
    this.#machineError = error;
    void this.unhook().then(() => this.#options.onClosed?.(error));
  }

  #featureIoctl(kind: 'commands' | 'events', argument: Uint8Array | undefined): number {
    if (!argument || argument.length < kvmIntrospectionFeature.size) return -ERRNO.EFAULT;
    return this.#feature(kind, kvmIntrospectionFeature.read(argument, 0));
  }

  #feature(kind: 'commands' | 'events', { allow, id }: { allow: number; id: number }): number {
    const limit = this.#dialect.ioctlLimit[kind];
    if (id < -1 || (limit !== undefined && (id >= limit || allow > 1))) return -ERRNO.EINVAL;
    const permissions = this.#hook?.permissions;
    if (!permissions) return -ERRNO.EFAULT;
    const allowed = (allow & 1) === 1;
    return kind === 'commands' ? permissions.allowCommand(id, allowed) : permissions.allowEvent(id, allowed);
  }
}
