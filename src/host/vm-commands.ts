import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, then } from '../awaitable.ts';
import {
  ACCESS,
  type CapabilityName,
  gfnOf,
  memoryEnd,
  PAGE_SIZE,
  pageOffset,
  requireCapability,
  requireTrap,
} from '../machine/index.ts';
import { MAX_PAYLOAD, type PageAccessEntry, type Replies } from '../wire/index.ts';
import type { HookContext } from './context.ts';
import type { VmHandler, VmHandlers } from './handlers.ts';
import { applyAll, bytesOf, bytesReply, type Outcome, refuse } from './outcome.ts';

const { KVM_EBUSY, KVM_EINVAL, KVM_ENOENT, KVM_EPERM } = KVM_ERRNO;

const VERSION = 1;
/** A vCPU with more pause requests than this refuses further ones. */
const MAX_PAUSE_REQUESTS = 1001;

const getVersion: VmHandler<'GET_VERSION'> = ({ dialect, machine: { capabilities } }) => {
  const has = (name: CapabilityName): number => (capabilities[name] === true ? 1 : 0);
  const reply: Replies['GET_VERSION'] = {
    version: VERSION,
    max_msg_size: dialect.name === 'v12' ? MAX_PAYLOAD : 0,
    singlestep: has('singlestep'),
    spp: has('sub-page'),
    vmfunc: 0,
    eptp: has('views'),
    ve: has('virtualization-exception'),
  };
  return reply;
};

const checkCommand: VmHandler<'VM_CHECK_COMMAND'> = ({ dialect, rules, permissions }, { body, padding }) => {
  if (padding) return KVM_EINVAL;
  const { id } = body!;
  const known =
    dialect.commandById(id) !== undefined ||
    (rules.checkKnowsEventMessage && id === dialect.messages.eventReply);
  if (!known && id >= rules.checkTable.commands) return rules.checkUnknown;
  return known && permissions.commandAllowed(id) ? 0 : KVM_EPERM;
};

const checkEvent: VmHandler<'VM_CHECK_EVENT'> = ({ dialect, rules, permissions }, { body, padding }) => {
  if (padding) return KVM_EINVAL;
  const { id } = body!;
  if (!dialect.eventById(id) && id >= rules.checkTable.events) return rules.checkUnknown;
  return permissions.eventAllowed(id) ? 0 : KVM_EPERM;
};

const controlEvents: VmHandler<'VM_CONTROL_EVENTS'> = (hook, { body, padding }) => {
  const { event_id, enable } = body!;
  if (padding || (hook.rules.strictEnable && enable > 1)) return KVM_EINVAL;
  const event = hook.dialect.eventById(event_id);
  if (!event || event.controlledBy === 'vcpu') return KVM_EINVAL;
  if (!hook.permissions.eventAllowed(event_id)) return KVM_EPERM;
  if (!enable) {
    hook.vmEvents.delete(event.name);
    return 0;
  }
  if (event.name === 'CREATE_VCPU') requireCapability(hook.machine.capabilities, 'create-vcpu');
  hook.vmEvents.add(event.name);
  return 0;
};

/** Whether a READ or WRITE is one that KVMI does: 1 to 4096 bytes inside one page. */
function isPageAccess(gpa: number, size: number): boolean {
  return size >= 1 && size <= PAGE_SIZE && pageOffset(gpa) + size <= PAGE_SIZE;
}

const readPhysical: VmHandler<'VM_READ_PHYSICAL'> = ({ machine }, { body, padding }) => {
  const { gpa, size } = body!;
  if (padding || !isPageAccess(gpa, size)) return KVM_EINVAL;
  const reply = bytesReply(size);
  return then(machine.memory.read(gpa, bytesOf(reply)), (read) => (read ? reply : KVM_ENOENT));
};

const writePhysical: VmHandler<'VM_WRITE_PHYSICAL'> = ({ machine }, { body, padding }) => {
  if (!body) return refuse('close', 'VM_WRITE_PHYSICAL is shorter than it announces');
  if (padding || !isPageAccess(body.gpa, body.size)) return KVM_EINVAL;
  requireCapability(machine.capabilities, 'memory-write');
  return then(machine.memory.write(body.gpa, body.data), (written) => (written ? 0 : KVM_ENOENT));
};

const pauseVcpu: VmHandler<'VM_PAUSE_VCPU'> = (hook, { body, vcpu, headerPadding, padding }) => {
  const { rules, permissions, machine } = hook;
  const { wait } = body!;
  if (headerPadding || padding) return refuse(rules.pausePadding, 'VM_PAUSE_VCPU: padding is not zero');
  if (rules.strictEnable && wait > 1) return KVM_EINVAL;
  if (!permissions.eventNameAllowed('PAUSE')) {
    return refuse(rules.pauseNotAllowed, 'VM_PAUSE_VCPU while the PAUSE event is not allowed');
  }
  const hooked = hook.vcpus[vcpu];
  if (!hooked) return KVM_EINVAL;
  requireCapability(machine.capabilities, 'pause');
  if (hooked.pauseRequests > MAX_PAUSE_REQUESTS) return KVM_EBUSY;
  hooked.pauseRequests++;
  const outside = hooked.vcpu.request();
  if (wait) return then(outside, () => 0);
  void hook.guarded(() => outside);
  return 0;
};

const controlCleanup: VmHandler<'VM_CONTROL_CLEANUP'> = (hook, { body, padding }) => {
  if (padding || body!.enable > 1) return KVM_EINVAL;
  hook.cleanup = body!.enable === 1;
  return 0;
};

const setPageAccess: VmHandler<'VM_SET_PAGE_ACCESS'> = (hook, { body, padding }) => {
  const { rules, machine } = hook;
  if (!body) return refuse(rules.shortPageAccess, 'VM_SET_PAGE_ACCESS is shorter than it announces');
  if (padding) return KVM_EINVAL;
  const view = body.view ?? 0;
  if (view !== 0) {
    requireCapability(machine.capabilities, 'views');
    if (!machine.views?.exists(view)) return KVM_EINVAL;
  }
  return applyAll(body.entries, hook.log, 'VM_SET_PAGE_ACCESS', (entry) => setOnePage(hook, entry, view));
};

/** One entry of VM_SET_PAGE_ACCESS. */
function setOnePage(hook: HookContext, entry: PageAccessEntry, view: number): Awaitable<number> {
  const { machine, rules } = hook;
  const { gpa, access, visible = 0 } = entry;
  if (access & ~ACCESS.all || entry.padding || visible > 1) return KVM_EINVAL;
  const gfn = gfnOf(gpa);
  const backed = machine.memory.regions.some((region) => gpa >= region.gpa && gpa < region.gpa + region.size);
  if (!backed) {
    const strict = rules.frameMissing === 'error' || (rules.frameMissing === 'visible' && visible === 1);
    return strict ? KVM_EINVAL : 0;
  }
  const trap = { kind: 'page', gfn, access, view } as const;
  requireTrap(machine.capabilities, trap);
  return then(access === ACCESS.all ? machine.disarm(trap) : machine.arm(trap), () => 0);
}

const controlCmdResponse: VmHandler<'VM_CONTROL_CMD_RESPONSE'> = (hook, { body, padding }, answering) => {
  const { enable, now, flags } = body!;
  if (padding || flags > 1) return refuse('close', 'VM_CONTROL_CMD_RESPONSE: padding is not zero');
  hook.responses.enabled = enable !== 0;
  hook.responses.errorsAsEvents = (flags & 1) !== 0;
  if (now) answering.silent = enable === 0;
  return 0;
};

const queryPhysical: VmHandler<'VM_QUERY_PHYSICAL'> = ({ machine }, { body }) => {
  const gpa = body!.gfn * PAGE_SIZE;
  const region = machine.memory.regions.find(
    (candidate) => gpa >= candidate.gpa && gpa < candidate.gpa + candidate.size,
  );
  return region ? { gfn: gfnOf(region.gpa), size: region.size / PAGE_SIZE } : KVM_ENOENT;
};

const nextAvailableGfn: VmHandler<'VM_GET_NEXT_AVAILABLE_GFN'> = ({ machine }) => {
  const last = machine.memory.regions.at(-1);
  return { gfn: last ? gfnOf(last.gpa + last.size) : 0 };
};

const getMapToken: VmHandler<'VM_GET_MAP_TOKEN'> = (hook): Outcome<'VM_GET_MAP_TOKEN'> => {
  hook.log.warnOnce('mapping guest memory into another guest needs a patched kernel');
  return KVM_ERRNO.KVM_EOPNOTSUPP;
};

/** The commands that the receiver carries out, views excepted. */
export const VM_COMMANDS = {
  GET_VERSION: getVersion,
  VM_CHECK_COMMAND: checkCommand,
  VM_CHECK_EVENT: checkEvent,
  VM_GET_INFO: ({ vcpus }) => ({ vcpu_count: vcpus.length }),
  VM_CONTROL_EVENTS: controlEvents,
  VM_READ_PHYSICAL: readPhysical,
  VM_WRITE_PHYSICAL: writePhysical,
  VM_PAUSE_VCPU: pauseVcpu,
  VM_CONTROL_CLEANUP: controlCleanup,
  VM_SET_PAGE_ACCESS: setPageAccess,
  VM_GET_MAX_GFN: ({ machine }) => ({ gfn: memoryEnd(machine.memory.regions) }),
  VM_CONTROL_CMD_RESPONSE: controlCmdResponse,
  VM_QUERY_PHYSICAL: queryPhysical,
  VM_GET_NEXT_AVAILABLE_GFN: nextAvailableGfn,
  VM_GET_MAP_TOKEN: getMapToken,
} satisfies Partial<VmHandlers>;
