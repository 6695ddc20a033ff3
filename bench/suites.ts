import { dumpSuite } from './dump.ts';
import { embeddedSuite } from './embedded.ts';
import { kvmSuite } from './kvm.ts';
import { linuxSuite } from './linux.ts';
import type { Suite } from './measurement.ts';
import { memorySuite } from './memory.ts';
import { qemuSuite } from './qemu.ts';

/** Every suite, in the order in which they run. */
export const SUITES: readonly Suite[] = [
  memorySuite,
  embeddedSuite,
  qemuSuite,
  linuxSuite,
  dumpSuite,
  kvmSuite,
];
