import assert from 'node:assert/strict';
import { deferred } from '../../src/awaitable.ts';
import {
  ACCESS,
  type CapabilityName,
  CONTINUE,
  type MachineHandler,
  type Stop,
} from '../../src/machine/index.ts';
import type { DialectName, EventName } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import type { Rig, Row } from './rig.ts';
import type { GuestAction } from './subject.ts';

/** A kind of trap: how it is armed beyond enabling its event, and what makes it fire. */
interface Armed {
  readonly kind: string;
  readonly event: EventName;
  readonly needs: readonly CapabilityName[];
  readonly action: GuestAction;
  readonly dialects?: readonly DialectName[];
  /** The error of what arms it. */
  readonly arm?: (rig: Rig) => Promise<number>;
}

async function control(
  rig: Rig,
  ...[name, body]:
    | ['VCPU_CONTROL_CR', { cr: number; enable: number }]
    | ['VCPU_CONTROL_MSR', { msr: number; enable: number }]
    | ['VCPU_CONTROL_SINGLESTEP', { enable: number }]
): Promise<number> {
  return (await rig.peer.command(name, body as never, 0)).err;
}

function page(kind: 'page-read' | 'page-write' | 'page-execute', access: number, action: GuestAction): Armed {
  return {
    kind,
    event: 'PF',
    // Without the right to read there is none to write or execute on most machines.
    needs: kind === 'page-read' ? ['page-read', 'page-write', 'page-execute'] : [kind],
    action,
    async arm({ peer, guest }) {
      const entries = [{ gpa: guest.testPage.gpa, access, visible: 1 }];
      return (await peer.command('VM_SET_PAGE_ACCESS', { view: 0, count: 1, entries })).err;
    },
  };
}

const KINDS: readonly Armed[] = [
  { kind: 'breakpoint', event: 'BREAKPOINT', needs: ['breakpoint'], action: 'int3' },
  {
    kind: 'cr',
    event: 'CR',
    needs: ['cr'],
    action: 'cr4',
    arm: (rig) => control(rig, 'VCPU_CONTROL_CR', { cr: 4, enable: 1 }),
  },
  {
    kind: 'msr',
    event: 'MSR',
    needs: ['msr'],
    action: 'msr',
    arm: (rig) => control(rig, 'VCPU_CONTROL_MSR', { msr: rig.guest.msr!, enable: 1 }),
  },
  { kind: 'xsetbv', event: 'XSETBV', needs: ['xsetbv'], action: 'xsetbv' },
  { kind: 'descriptor', event: 'DESCRIPTOR', needs: ['descriptor'], action: 'sgdt' },
  { kind: 'hypercall', event: 'HYPERCALL', needs: ['hypercall'], action: 'vmcall' },
  { kind: 'cpuid', event: 'CPUID', needs: ['cpuid-event'], action: 'cpuid', dialects: ['v7'] },
  {
    kind: 'singlestep',
    event: 'SINGLESTEP',
    needs: ['singlestep'],
    action: 'noop',
    arm: (rig) => control(rig, 'VCPU_CONTROL_SINGLESTEP', { enable: 1 }),
  },
  page('page-read', 0, 'read-page'),
  page('page-write', ACCESS.read | ACCESS.execute, 'write-page'),
  page('page-execute', ACCESS.read | ACCESS.write, 'execute-page'),
];

/** Attaches a handler that has nothing armed, and resolves when a vCPU was outside the guest for it. */
async function attachBare({ machine }: Rig, stops: Stop['kind'][]): Promise<void> {
  const requested = deferred<void>();
  const handler: MachineHandler = {
    stop(_vcpu, { kind }) {
      stops.push(kind);
      return CONTINUE;
    },
    request() {
      requested.resolve();
      return undefined;
    },
    closed() {},
  };
  await machine.attach(handler);
  void machine.vcpus[0]!.request();
  await patiently(requested.promise, 'a request of a handler that has nothing armed');
}

/** Armed, seen to fire, unhooked: the same action again is nobody's business, whether somebody is attached or not. */
function gone({ kind, event, needs, action, dialects, arm }: Armed): Row {
  return {
    rows: 'x',
    title: `nothing stays armed after UNHOOK: ${kind}`,
    needs: [...needs, 'pause'],
    actions: [action],
    ...(dialects && { dialects }),
    async run(rig) {
      await rig.hookAll();
      await rig.enable(event);
      if (arm) assert.equal(await arm(rig), 0, `arming ${kind}`);
      const done = rig.guest.act(action);
      await rig.peer.event(event);
      assert.notEqual(await rig.guest.isDebugged?.(), false, 'what is armed can be seen');
      await rig.unhook();
      await patiently(done, `${action}, which UNHOOK lets go on`);
      assert.notEqual(await rig.guest.isDebugged?.(), true, 'nobody holds the VMM after UNHOOK');
      await patiently(rig.guest.act(action), `${action} with nobody attached`);

      const stops: Stop['kind'][] = [];
      await attachBare(rig, stops);
      try {
        await patiently(rig.guest.act(action), `${action} with nothing armed`);
        assert.deepEqual(stops, [], `${action}: stops of what was armed before UNHOOK`);
      } finally {
        await rig.machine.detach();
      }
    },
  };
}

/** Each kind of trap is armed, and gone after UNHOOK. */
export const ARMED_ROWS: readonly Row[] = KINDS.map(gone);
