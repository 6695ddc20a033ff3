export {
  ACTION_FAULTED,
  createEmbeddedMachine,
  type EmbeddedOptions,
  kernelAddress,
  kernelNumber,
  kernelSymbol,
  kernelSymbols,
  MiniKernel,
  type MiniTask,
  miniKernelImage,
} from './guest.ts';
export { type Crash, EmbeddedMachine, type EmbeddedMachineOptions, type GuestImage } from './machine.ts';
export { type CrashReason, EmbeddedVcpu } from './vcpu.ts';
