import { after, describe, test } from 'node:test';
import type { CapabilityName, Machine } from '../../src/machine/index.ts';
import type { DialectName } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import { ARMED_ROWS } from './armed-rows.ts';
import { CLOSING_ROWS } from './closing-rows.ts';
import { EVENT_ROWS } from './event-rows.ts';
import { REQUEST_ROWS } from './requests.ts';
import { Rig, type Row } from './rig.ts';
import type { RunningSubject, Subject } from './subject.ts';
import { Support } from './support.ts';
import { V7_ROWS } from './v7-rows.ts';
import { VCPU_ROWS } from './vcpu-rows.ts';
import { VM_ROWS } from './vm-rows.ts';

export const ROWS: readonly Row[] = [
  ...REQUEST_ROWS,
  ...VM_ROWS,
  ...VCPU_ROWS,
  ...EVENT_ROWS,
  ...CLOSING_ROWS,
  ...ARMED_ROWS,
  ...V7_ROWS,
];

/** Rows take less than a second; on no machine they take this long. */
const ROW_MS = 120_000;
const DIALECT_NAMES: readonly DialectName[] = ['v7', 'v9', 'v12'];

/** Why a row cannot be run on a machine: the reason that the driver, or its guest, gives. */
export function reasonToSkip(row: Row, { machine, guest }: RunningSubject): string | undefined {
  const absent = row.needs?.find((name) => machine.capabilities[name] !== true);
  if (absent) return `${absent}: ${reasonOf(machine, absent)}`;
  for (const action of row.actions ?? []) {
    const reason = guest.cannot(action);
    if (reason) return `${action}: ${reason}`;
  }
  if (row.beforeWrite && guest.lateWrites) return guest.lateWrites;
  if (row.holds && !guest.hold) return 'the device manager of this driver cannot keep vCPUs out of KVM_RUN';
  if (row.starts && !guest.startVcpu) return 'every vCPU of this guest is started';
  return undefined;
}

function reasonOf(machine: Machine, name: CapabilityName): string {
  const support = machine.capabilities[name];
  return support === true ? '' : support;
}

/** Runs every row on a driver, in every dialect that has it. */
export function conformance(subject: Subject): void {
  const unavailable = subject.unavailable();
  describe(`conformance: ${subject.driver}`, { skip: unavailable ?? false }, () => {
    let started: Promise<RunningSubject> | undefined;
    const support = new Support(subject.driver);
    const close = async (): Promise<void> => {
      const running = await started;
      started = undefined;
      if (running) await patiently(running.close(), 'the machine to be closed', ROW_MS);
    };
    after(close);
    for (const dialect of DIALECT_NAMES) {
      for (const row of ROWS) {
        if (row.dialects && !row.dialects.includes(dialect)) continue;
        test(`${dialect} [${row.rows}] ${row.title}`, async (t) => {
          started ??= subject.start();
          const running = await started;
          support.machine(running.machine);
          let passed = false;
          try {
            const reason = reasonToSkip(row, running);
            if (reason) t.skip(reason);
            else await patiently(runRow(row, running, dialect, support), 'the row', ROW_MS);
            passed = true;
          } finally {
            // What a failure left of a machine is not to fail the next row.
            if (subject.fresh || !passed) await close();
          }
        });
      }
    }
    if (subject.documented) test('docs/support.md is what this run shows', () => support.check());
  });
}

async function runRow(
  row: Row,
  running: RunningSubject,
  dialect: DialectName,
  support: Support,
): Promise<void> {
  const rig = new Rig(running, dialect, support);
  try {
    await row.run(rig);
  } finally {
    await rig.introspection.unhook();
  }
}
