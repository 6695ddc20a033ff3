/** Why the virtual CPUs stopped. */
export interface StopReply {
  readonly signal: number;
  /** The vCPU that reported it; undefined when the reply names none. */
  readonly vcpu: number | undefined;
  /** True when a watchpoint fired. */
  readonly watchpoint: boolean;
}

/** Numbers of signals as GDB has them. */
export const SIGINT = 2;
export const SIGTRAP = 5;
export const SIGXCPU = 24;

/** Decodes `T05thread:p01.02;…` and `S05`; undefined for anything else, such as the exit of the VM (`W00`). */
export function parseStopReply(payload: string): StopReply | undefined {
  const match = /^[TS]([0-9a-f]{2})(.*)$/i.exec(payload);
  if (match === null) return undefined;
  const thread = /thread:((?:p[0-9a-f]+\.)?[0-9a-f]{1,8});/i.exec(match[2]!);
  return {
    signal: Number.parseInt(match[1]!, 16),
    vcpu: thread === null ? undefined : vcpuOfThread(thread[1]!),
    watchpoint: /(?:^|;)[ra]?watch:/.test(match[2]!),
  };
}

/** The vCPU that a stub calls `p1.2` or `2`. */
export function vcpuOfThread(thread: string): number {
  return Number.parseInt(thread.slice(thread.indexOf('.') + 1), 16) - 1;
}

/** How a stub of one process with a thread a vCPU names a vCPU. */
export function threadId(vcpu: number): string {
  return `p1.${(vcpu + 1).toString(16)}`;
}
