import type { Machine, MachineProbes } from '../../src/machine/index.ts';

/** The same machine with other probes, or none. */
export function withProbes(machine: Machine, probes: MachineProbes | undefined): Machine {
  return new Proxy(machine, {
    get(inner, name) {
      if (name === 'probes') return probes;
      const value: unknown = Reflect.get(inner, name, inner);
      return typeof value === 'function' ? value.bind(inner) : value;
    },
  });
}
