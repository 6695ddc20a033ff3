import { setImmediate as turn } from 'node:timers/promises';
import {
  createEmbeddedMachine,
  kernelAddress,
  kernelSymbol,
  MiniKernel,
} from '../../src/drivers/embedded/index.ts';
import type { GuestAction, RunningSubject, Subject } from './subject.ts';

const CR4_OSXSAVE = 1n << 18n;
const XCR0_AVX = 1n << 2n;
const MSR_MISC_FEATURES = 0x140n;
const RET = Uint8Array.of(0xc3);

/** The mini kernel's actions, with their arguments. */
const ACTIONS: { readonly [A in GuestAction]: readonly [name: string, arg0?: bigint, arg1?: bigint] } = {
  noop: ['nop'],
  int3: ['int3'],
  vmcall: ['vmcall'],
  'vmcall-other': ['vmcall_other'],
  cr4: ['cr4', CR4_OSXSAVE],
  cr3: ['cr3'],
  msr: ['wrmsr', MSR_MISC_FEATURES, 1n],
  xsetbv: ['xsetbv', XCR0_AVX],
  sgdt: ['sgdt'],
  lgdt: ['lgdt'],
  cpuid: ['cpuid', 1n],
  'write-page': ['write', 0n, 0x42n],
  'read-page': ['read'],
  'execute-page': ['execute'],
  ud2: ['ud2'],
  'take-exception': ['nop'],
};

async function start(vcpus: number): Promise<RunningSubject> {
  const machine = createEmbeddedMachine({ vcpus });
  const kernel = new MiniKernel(machine);
  const testPage = { gpa: kernelAddress('test_page'), gva: kernelSymbol('test_page') };
  machine.start();
  const act = async (action: GuestAction): Promise<bigint> => {
    if (action === 'execute-page') machine.memory.write(testPage.gpa, RET);
    const before = kernel.done();
    kernel.post(...ACTIONS[action]);
    while (kernel.done() === before) await turn();
    return kernel.result();
  };
  await act('noop');
  return {
    machine,
    guest: {
      testPage,
      // mov [rdi + test_page], al
      writeLength: 6,
      cannot: () => undefined,
      act,
      hold: async () => machine.pause(),
      release: async () => machine.resume(),
      async addVcpu() {
        const vcpu = await machine.addVcpu();
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
    start: () => start(vcpus),
    fresh: true,
    ...(vcpus === 1 && { documented: true }),
  };
}
