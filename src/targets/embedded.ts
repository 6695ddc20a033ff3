import { integer } from '../input/values.ts';
import type { Machine } from '../machine/index.ts';
import type { Target } from './target.ts';

/** The machine that lives in this process, with its mini kernel. */
export const EMBEDDED_TARGET: Target = {
  prefix: 'embedded',
  syntax: '[VCPUS]',
  about:
    'a small machine inside this process, with 1 vCPU or as many as given, of which its kernel starts the first: no VM is needed',
  async open(rest): Promise<Machine> {
    const vcpus = rest === '' ? 1 : integer('embedded:VCPUS', 1, 64)(rest);
    const { createEmbeddedMachine, MiniKernel } = await import('../drivers/embedded/index.ts');
    const machine = createEmbeddedMachine({ vcpus });
    new MiniKernel(machine).boot();
    machine.start();
    return machine;
  },
  async symbols() {
    return (await import('../drivers/embedded/index.ts')).kernelSymbols();
  },
};
