import type { Awaitable } from '../awaitable.ts';
import type { CommandName, ReceivedCommand, VcpuCommandName, VmCommandName } from '../wire/index.ts';
import type { VcpuContext, VmContext } from './context.ts';
import type { Outcome } from './outcome.ts';

/** What a handler may change about how its command is answered. */
export interface Answering {
  /** Replies were off when it was received (dialect v7, VM_CONTROL_CMD_RESPONSE). */
  silent: boolean;
}

type Handler<C, N extends CommandName> = (
  context: C,
  command: ReceivedCommand<N>,
  answering: Answering,
) => Awaitable<Outcome<N>>;

/** Carries out a VM command on the receiver. */
export type VmHandler<N extends VmCommandName> = Handler<VmContext, N>;
/** Carries out a vCPU command while the vCPU is outside the guest. */
export type VcpuHandler<N extends VcpuCommandName> = Handler<VcpuContext, N>;

/** One for every command of every dialect. */
export type VmHandlers = { readonly [N in VmCommandName]: VmHandler<N> };
export type VcpuHandlers = { readonly [N in VcpuCommandName]: VcpuHandler<N> };
