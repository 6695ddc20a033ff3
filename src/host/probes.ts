import { then } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import type { MachineProbes, ProbePort } from '../machine/index.ts';
import type { HookedVcpu } from './hooked-vcpu.ts';

/** A machine's probes for a tool in this process. `hooked` is undefined when the machine is not hooked (any more). */
export function probePort(probes: MachineProbes, hooked: () => readonly HookedVcpu[] | undefined): ProbePort {
  return {
    kind: probes.kind,
    count: probes.count,
    set(address, hit) {
      if (!hooked())
        throw new KvmiError('E_CLOSED', 'the machine is not hooked: nobody would take a probe back');
      return probes.set(address, (vcpu) =>
        then(
          hooked()?.[vcpu.index]?.visit((state) => hit(vcpu.index, state)),
          (action) => (action === 'retry' ? 'retry' : undefined),
        ),
      );
    },
  };
}
