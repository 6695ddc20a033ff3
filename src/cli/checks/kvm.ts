import type { Check, Finding } from './check.ts';

/** What the driver for stock KVM looks at; elsewhere than on Linux nothing. koffi is among the checks of the host. */
export async function kvmChecks(): Promise<Check[]> {
  if (process.platform !== 'linux') return [];
  const { doctorKvm } = await import('../../drivers/kvm/doctor.ts');
  return doctorKvm()
    .filter(({ check }) => check !== 'koffi')
    .map(({ check, ok, found, enables, hint }) => {
      const finding: Finding = ok ? { severity: 'ok', found } : { severity: 'info', found, remedy: hint };
      return { name: check, enables, examine: () => finding };
    });
}
