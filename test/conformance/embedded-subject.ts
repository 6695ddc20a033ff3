import { setImmediate as turn } from 'node:timers/promises';
import { createEmbeddedMachine, kernelAddress, MiniKernel } from '../../src/drivers/embedded/index.ts';
import type { Machine } from '../../src/machine/index.ts';
import { LateMachine } from '../kit/late-machine.ts';
import { MINI_KERNEL_PAGE, miniKernelActions } from './mini-kernel-actions.ts';
import type { RunningSubject, Subject } from './subject.ts';

const MSR_MISC_FEATURES = 0x140;
const RET = Uint8Array.of(0xc3);

async function start(vcpus: number, late: boolean): Promise<RunningSubject> {
  const embedded = createEmbeddedMachine({ vcpus });
  const machine: Machine = late ? new LateMachine(embedded) : embedded;
  const kernel = new MiniKernel(embedded);
  embedded.start();
  const call = async (action: string, arg0?: bigint, arg1?: bigint): Promise<bigint> => {
    if (action === 'execute') embedded.memory.write(MINI_KERNEL_PAGE.testPage.gpa, RET);
    const before = kernel.done();
    kernel.post(action, arg0, arg1);
    while (kernel.done() === before) await turn();
    return kernel.result();
  };
  const act = miniKernelActions(MSR_MISC_FEATURES, call);
  await act('noop');
  return {
    machine,
    guest: {
      ...MINI_KERNEL_PAGE,
      msr: MSR_MISC_FEATURES,
      cannot: () => undefined,
      act,
      hold: async () => embedded.pause(),
      release: async () => embedded.resume(),
      ...(vcpus > 1 && {
        startVcpu: async () => {
          await call('start_cpu', 1n);
        },
      }),
      async addVcpu() {
        const vcpu = await embedded.addVcpu();
        // The identity map is gone, and the vCPU will not get far: its event has to come first.
        vcpu.start(kernelAddress('ap_code'));
      },
    },
    close: () => machine.close(),
  };
}

/** The embedded machine with its mini kernel. */
export function embeddedSubject(vcpus: number): Subject {
  return {
    driver: vcpus === 1 ? 'embedded' : `embedded, ${vcpus} vCPUs`,
    unavailable: () => undefined,
    start: () => start(vcpus, false),
    fresh: true,
    ...(vcpus === 1 && { documented: true }),
  };
}

/** The same machine as one behind a socket would be: nothing that may be a promise is there at once. */
export const lateEmbeddedSubject: Subject = {
  driver: 'embedded, answers later',
  unavailable: () => undefined,
  start: () => start(1, true),
  fresh: true,
};
