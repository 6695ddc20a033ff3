import { dumpSuite } from './dump.ts';
import { embeddedSuite } from './embedded.ts';
import { kvmSuite } from './kvm.ts';
import { linuxSuite } from './linux.ts';
import { keeps, type Measurement, type Suite } from './measurement.ts';
import { memorySuite } from './memory.ts';
import { qemuSuite } from './qemu.ts';

const SUITES: readonly Suite[] = [memorySuite, embeddedSuite, qemuSuite, linuxSuite, dumpSuite, kvmSuite];

function line({ name, value, unit, against }: Measurement): string {
  const digits = value >= 100 ? 0 : value >= 1 ? 1 : 3;
  const number = value.toLocaleString('en', { maximumFractionDigits: digits, minimumFractionDigits: digits });
  const start = `  ${name.padEnd(52)} ${number.padStart(14)} ${unit.padEnd(8)}`;
  if (!against) return start;
  const { what, ratio, budget } = against;
  const verdict = budget ? ` (budget ${budget}${keeps(ratio, budget) ? '' : ', MISSED'})` : '';
  return `${start} ${ratio.toFixed(2)} × ${what}${verdict}`;
}

const wanted = process.argv.slice(2);
for (const suite of SUITES) {
  if (wanted.length > 0 && !wanted.includes(suite.name)) continue;
  console.log(suite.name);
  const reason = suite.unavailable?.();
  if (reason) console.log(`  skipped: ${reason}`);
  else for (const measurement of await suite.run()) console.log(line(measurement));
}
