import type { DescriptorTable, InterceptedCr } from '../../../machine/index.ts';
import { join64 } from './wide.ts';

/*
 * The stops of one vCPU, filled in anew for each one. 64-bit values are kept as halves and become bigint only
 * for a handler that looks at them.
 */

export class BreakpointStop {
  readonly kind = 'breakpoint';
  gpa = 0;
  readonly length = 1;
}

export class RegisterChange {
  oldLo = 0;
  oldHi = 0;
  newLo = 0;
  newHi = 0;

  get old(): bigint {
    return join64(this.oldLo, this.oldHi);
  }

  get new(): bigint {
    return join64(this.newLo, this.newHi);
  }
}

export class CrStop extends RegisterChange {
  readonly kind = 'cr';
  cr: InterceptedCr = 0;
}

export class MsrStop extends RegisterChange {
  readonly kind = 'msr';
  msr = 0;
}

export class XsetbvStop extends RegisterChange {
  readonly kind = 'xsetbv';
  readonly xcr = 0;
}

export class DescriptorStop {
  readonly kind = 'descriptor';
  table: DescriptorTable = 1;
  write = false;
}

export class HypercallStop {
  readonly kind = 'hypercall';
}

export class CpuidStop {
  readonly kind = 'cpuid';
  leaf = 0;
  subleaf = 0;
  length = 2;
}

export class SinglestepStop {
  readonly kind = 'singlestep';
  failed = false;
}

export class PageStop {
  readonly kind = 'page';
  gvaLo = 0;
  gvaHi = 0;
  gpa = 0;
  access = 0;
  view = 0;

  get gva(): bigint {
    return join64(this.gvaLo, this.gvaHi);
  }
}

/** In front of an instruction with a probe. */
export class ProbeStop {
  readonly kind = 'probe';
  lo = 0;
  hi = 0;
}

export class TrapStop {
  readonly kind = 'trap';
  vector = 0;
  errorCode = 0;
  addressLo = 0;
  addressHi = 0;

  get address(): bigint {
    return join64(this.addressLo, this.addressHi);
  }
}

export class Stops {
  readonly breakpoint = new BreakpointStop();
  readonly cr = new CrStop();
  readonly msr = new MsrStop();
  readonly xsetbv = new XsetbvStop();
  readonly descriptor = new DescriptorStop();
  readonly hypercall = new HypercallStop();
  readonly cpuid = new CpuidStop();
  readonly singlestep = new SinglestepStop();
  readonly page = new PageStop();
  readonly trap = new TrapStop();
  readonly probe = new ProbeStop();
}

export type CpuStop = Stops[keyof Stops];
