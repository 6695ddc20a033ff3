import { getU16 } from '../abi/bytes.ts';
import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, then } from '../awaitable.ts';
import {
  CapabilityError,
  type CapabilityName,
  type Frames,
  gfnOf,
  type Machine,
  type Views,
} from '../machine/index.ts';
import { changeGfnPlain, changeGfnWithView } from '../wire/index.ts';
import type { VcpuHandler, VcpuHandlers, VmHandler, VmHandlers } from './handlers.ts';
import { applyAll } from './outcome.ts';

/*
 * The optional half of dialect v7: alternative views, sub-page write rights, frames that come and go. A
 * machine without them answers -KVM_EOPNOTSUPP.
 */

const { KVM_EBUSY, KVM_EINVAL, KVM_ENOENT, KVM_ENOMEM, KVM_EPERM } = KVM_ERRNO;

/** `new_gfn` of all-ones is reserved. */
const RESERVED_GFN = 2 ** 64;

function absent(machine: Machine, name: CapabilityName): CapabilityError {
  const support = machine.capabilities[name];
  return new CapabilityError(name, support === true ? 'the driver does not offer it' : support);
}

function viewsOf(machine: Machine): Views {
  if (!machine.views) throw absent(machine, 'views');
  return machine.views;
}

function framesOf(machine: Machine): Frames {
  if (!machine.frames) throw absent(machine, 'frames');
  return machine.frames;
}

/** 0, or `errno` for what the machine says is not possible. */
function okOr(done: Awaitable<boolean>, errno: number): Awaitable<number> {
  return then(done, (ok) => (ok ? 0 : errno));
}

const createView: VmHandler<'VM_CREATE_EPT_VIEW'> = ({ machine }) =>
  then(viewsOf(machine).create(), (view) => (view === undefined ? KVM_ENOMEM : { view }));

const destroyView: VmHandler<'VM_DESTROY_EPT_VIEW'> = ({ machine }, { body, padding }) =>
  padding ? KVM_EINVAL : okOr(viewsOf(machine).destroy(body!.view), KVM_EINVAL);

const controlSpp: VmHandler<'VM_CONTROL_SPP'> = ({ machine }, { padding }) => {
  if (padding) return KVM_EINVAL;
  if (!machine.views?.setWriteBitmap) throw absent(machine, 'sub-page');
  return 0;
};

const setPageWriteBitmap: VmHandler<'VM_SET_PAGE_WRITE_BITMAP'> = ({ machine, log }, { body, padding }) => {
  const views = machine.views;
  if (!views?.setWriteBitmap) throw absent(machine, 'sub-page');
  if (!body || padding || !views.exists(body.view)) return KVM_EINVAL;
  return applyAll(body.entries, log, 'VM_SET_PAGE_WRITE_BITMAP', ({ gpa, bitmap }) =>
    okOr(views.setWriteBitmap!(body.view, gfnOf(gpa), bitmap), KVM_ENOENT),
  );
};

const switchView: VcpuHandler<'VCPU_SET_EPT_VIEW'> = ({ vcpu, hook }, { body, padding }) =>
  padding ? KVM_EINVAL : okOr(viewsOf(hook.machine).switch(vcpu, body!.view), KVM_EINVAL);

const controlView: VcpuHandler<'VCPU_CONTROL_EPT_VIEW'> = ({ vcpu, hook }, { body, padding }) =>
  padding
    ? KVM_EINVAL
    : okOr(viewsOf(hook.machine).setVisible(vcpu, body!.view, body!.visible !== 0), KVM_EINVAL);

/** The two layouts differ in size; messages shorter than the small one are zero-extended to it. */
const changeGfn: VcpuHandler<'VCPU_CHANGE_GFN'> = ({ vcpu, hook }, { body }) => {
  const views = viewsOf(hook.machine);
  const { data } = body!;
  const layout = data.length >= changeGfnWithView.size ? changeGfnWithView : changeGfnPlain;
  const whole = new Uint8Array(layout.size);
  whole.set(data.subarray(0, layout.size));
  if (layout.hasPadding(whole, 0)) return KVM_EINVAL;
  const { old_gfn, new_gfn } = layout.read(whole, 0);
  const view = layout === changeGfnWithView ? getU16(whole, 0) : views.current(vcpu);
  if (new_gfn === RESERVED_GFN) return KVM_EPERM;
  return okOr(views.changeGfn(view, old_gfn, new_gfn), KVM_EINVAL);
};

const noVirtualizationException = (machine: Machine): never => {
  throw absent(machine, 'virtualization-exception');
};

/** What the receiver carries out. */
export const VM_VIEW_COMMANDS = {
  VM_CREATE_EPT_VIEW: createView,
  VM_DESTROY_EPT_VIEW: destroyView,
  VM_CONTROL_SPP: controlSpp,
  VM_SET_PAGE_WRITE_BITMAP: setPageWriteBitmap,
  VM_SET_PAGE_SVE: ({ machine }) => noVirtualizationException(machine),
} satisfies Partial<VmHandlers>;

/** What a vCPU carries out. */
export const VCPU_VIEW_COMMANDS = {
  VCPU_SET_EPT_VIEW: switchView,
  VCPU_GET_EPT_VIEW: ({ vcpu, hook }) => ({ view: hook.machine.views?.current(vcpu) ?? 0 }),
  VCPU_CONTROL_EPT_VIEW: controlView,
  VCPU_CHANGE_GFN: changeGfn,
  VCPU_ALLOC_GFN: ({ hook }, { body }) => okOr(framesOf(hook.machine).allocate(body!.gfn), KVM_EBUSY),
  VCPU_FREE_GFN: ({ hook }, { body }) => okOr(framesOf(hook.machine).free(body!.gfn), KVM_ENOENT),
  VCPU_SET_VE_INFO: ({ hook }) => noVirtualizationException(hook.machine),
  VCPU_DISABLE_VE: ({ hook }) => noVirtualizationException(hook.machine),
} satisfies Partial<VcpuHandlers>;
