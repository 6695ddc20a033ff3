import { type Awaitable, then } from '../awaitable.ts';
import { type Answer, CONTINUE, CRASH, REFUSE, RETRY, type Stop, type StopKind } from '../machine/index.ts';
import type { EventData, EventName } from '../wire/index.ts';
import type { HookContext, VcpuContext } from './context.ts';
import type { EventOutcome } from './event-outcome.ts';

type StopOf<K extends StopKind> = Extract<Stop, { kind: K }>;

/** How a stop becomes an event, and the tool's answer to the event the answer to the stop. */
export interface StopRoute<S extends Stop = Stop> {
  readonly event: EventName;
  /** Whether the tool is to be told. */
  wanted(vcpu: VcpuContext, stop: S): boolean;
  data(stop: S): EventData[EventName];
  answer(outcome: EventOutcome, hook: HookContext, stop: S): Awaitable<Answer>;
}

interface RouteTable {
  wanted?: (vcpu: VcpuContext, stop: never) => boolean;
  /** The effect has already happened or cannot be withheld: whatever the tool answers, go on. */
  past?: boolean;
  answer?: (outcome: EventOutcome, stop: never) => Answer;
}

function route<K extends StopKind, N extends EventName>(
  event: N,
  data: (stop: StopOf<K>) => EventData[N],
  table: RouteTable = {},
): StopRoute<StopOf<K>> {
  const continued = table.answer as ((outcome: EventOutcome, stop: Stop) => Answer) | undefined;
  return {
    event,
    wanted: (table.wanted as StopRoute['wanted']) ?? ((vcpu) => vcpu.events.has(event)),
    data,
    answer(outcome, hook, stop) {
      switch (outcome.action) {
        case 'lost':
          return CONTINUE;
        case 'continue':
          return continued ? continued(outcome, stop) : CONTINUE;
        case 'retry':
          return RETRY;
        case 'invalid':
          return table.past ? CONTINUE : REFUSE;
        case 'crash':
          if (hook.rules.crash === 'shutdown') return CRASH;
          return then(hook.kill(), () => (table.past ? CONTINUE : REFUSE));
      }
    },
  };
}

const withNewValue = (outcome: EventOutcome): Answer => ({
  action: 'continue',
  value: outcome.data.new_val ?? 0n,
});

function pageAnswer({ data }: EventOutcome, stop: StopOf<'page'>): Answer {
  if (!data.ctx_size && !data.rep_complete) return CONTINUE;
  const bytes = data.ctx_data?.subarray(0, data.ctx_size);
  return {
    action: 'continue',
    repComplete: data.rep_complete !== 0,
    ...(bytes && bytes.length > 0 && { substitute: { gva: data.ctx_addr ?? stop.gva, bytes } }),
  };
}

const ROUTES: { readonly [K in StopKind]: StopRoute<StopOf<K>> } = {
  breakpoint: route('BREAKPOINT', (stop) => ({ gpa: stop.gpa, insn_len: stop.length })),
  cr: route('CR', (stop) => ({ cr: stop.cr, old_value: stop.old, new_value: stop.new }), {
    wanted: (vcpu, stop: StopOf<'cr'>) => vcpu.events.has('CR') && vcpu.crs.has(stop.cr),
    answer: withNewValue,
  }),
  msr: route('MSR', (stop) => ({ msr: stop.msr, old_value: stop.old, new_value: stop.new }), {
    wanted: (vcpu, stop: StopOf<'msr'>) => vcpu.events.has('MSR') && vcpu.msrs.has(stop.msr),
    answer: withNewValue,
  }),
  xsetbv: route('XSETBV', (stop) => ({ xcr: stop.xcr, old_value: stop.old, new_value: stop.new }), {
    past: true,
  }),
  descriptor: route('DESCRIPTOR', (stop) => ({ descriptor: stop.table, write: stop.write ? 1 : 0 })),
  hypercall: route('HYPERCALL', () => ({}), { past: true }),
  cpuid: route('CPUID', (stop) => ({ function: stop.leaf, index: stop.subleaf, insn_length: stop.length }), {
    past: true,
  }),
  singlestep: route('SINGLESTEP', (stop) => ({ failed: stop.failed ? 1 : 0 }), {
    past: true,
    wanted: (vcpu) =>
      vcpu.singlestep && (!vcpu.hook.rules.singlestepNeedsEvent || vcpu.events.has('SINGLESTEP')),
  }),
  page: route('PF', (stop) => ({ gva: stop.gva, gpa: stop.gpa, access: stop.access, view: stop.view }), {
    answer: pageAnswer,
  }),
  trap: route('TRAP', (stop) => ({ nr: stop.vector, error_code: stop.errorCode, address: stop.address }), {
    past: true,
    wanted(vcpu) {
      const wanted = vcpu.injecting;
      vcpu.injecting = false;
      return wanted;
    },
  }),
};

/** The route of a stop. */
export function routeOf(stop: Stop): StopRoute {
  return ROUTES[stop.kind] as unknown as StopRoute;
}
