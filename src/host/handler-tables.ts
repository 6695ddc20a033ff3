import type { VcpuHandlers, VmHandlers } from './handlers.ts';
import { VCPU_COMMANDS } from './vcpu-commands.ts';
import { VCPU_VIEW_COMMANDS, VM_VIEW_COMMANDS } from './view-commands.ts';
import { VM_COMMANDS } from './vm-commands.ts';

/** What the receiver carries out. */
export const VM_HANDLERS: VmHandlers = { ...VM_COMMANDS, ...VM_VIEW_COMMANDS };
/** What a vCPU carries out. */
export const VCPU_HANDLERS: VcpuHandlers = { ...VCPU_COMMANDS, ...VCPU_VIEW_COMMANDS };
