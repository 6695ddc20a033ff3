import type { Awaitable } from '../awaitable.ts';
import type { CommandName, ReceivedCommand } from '../wire/index.ts';
import type { Request } from './dispatch.ts';
import type { Hook } from './hook.ts';
import type { HookedVcpu } from './hooked-vcpu.ts';
import type { Outcome } from './outcome.ts';

/** Carries out a VM command on the receiver. */
export type VmHandler<N extends CommandName> = (
  hook: Hook,
  command: ReceivedCommand<N>,
  request: Request,
) => Awaitable<Outcome<N>>;

/** Carries out a vCPU command while the vCPU is outside the guest. */
export type VcpuHandler<N extends CommandName> = (
  vcpu: HookedVcpu,
  command: ReceivedCommand<N>,
  request: Request,
) => Awaitable<Outcome<N>>;

export type VmHandlers = { readonly [N in CommandName]?: VmHandler<N> };
export type VcpuHandlers = { readonly [N in CommandName]?: VcpuHandler<N> };
