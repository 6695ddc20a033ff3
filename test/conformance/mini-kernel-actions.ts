import { kernelAddress, kernelSymbol } from '../../src/drivers/embedded/index.ts';
import type { GuestAction } from './subject.ts';

/** Only programs that read the time-stamp counter notice. */
const CR4_TSD = 1n << 2n;
const XCR0_AVX = 1n << 2n;

type Call = readonly [name: string, arg0?: bigint, arg1?: bigint];

/** The mini kernel's actions, with their arguments. */
const ACTIONS: { readonly [A in Exclude<GuestAction, 'msr'>]: Call } = {
  noop: ['nop'],
  int3: ['int3'],
  vmcall: ['vmcall'],
  'vmcall-other': ['vmcall_other'],
  cr4: ['cr4', CR4_TSD],
  cr3: ['cr3'],
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

/** The mini kernel's test page, and the bytes of `mov [rdi + test_page], al`. */
export const MINI_KERNEL_PAGE = {
  testPage: { gpa: kernelAddress('test_page'), gva: kernelSymbol('test_page') },
  writeLength: 6,
};

/** Carries actions out through `call`, which asks the mini kernel for one. The action `msr` is for that MSR. */
export function miniKernelActions(
  msr: number,
  call: (...call: Call) => Promise<bigint>,
): (action: GuestAction) => Promise<bigint> {
  let value = 0n;
  return async (action) => {
    if (action !== 'msr') return call(...ACTIONS[action]);
    value = await call('wrmsr', BigInt(msr), value === 0n ? 1n : 0n);
    return value;
  };
}
