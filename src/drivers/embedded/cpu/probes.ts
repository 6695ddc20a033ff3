import type { Cpu } from './cpu.ts';
import { exactRip } from './mmu.ts';
import { Op, type Run } from './op.ts';
import { STOP } from './signals.ts';

/** The instruction with the question whether a probe is in front of it. */
export function probed(op: Op): Op {
  const { run } = op;
  const ask: Run = (c, self) => {
    exactRip(c);
    if (!c.probeGranted && c.code.probes.has(c.stopLo, c.stopHi)) stopAt(c);
    run(c, self);
  };
  return Object.assign(new Op(ask), op, { run: ask });
}

function stopAt(c: Cpu): never {
  c.stops.probe.lo = c.stopLo;
  c.stops.probe.hi = c.stopHi;
  c.stop = c.stops.probe;
  throw STOP;
}
