import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, then } from '../awaitable.ts';
import {
  type CommandDefinition,
  decodeCommand,
  decodeEventReply,
  type EventData,
  type EventName,
  encodeErrorReply,
  encodeReply,
  ProtocolError,
  putHeader,
  type ReceivedEventReply,
} from '../wire/index.ts';
import type { VcpuContext, VmContext } from './context.ts';
import { VCPU_HANDLERS, VM_HANDLERS } from './handler-tables.ts';
import type { Answering } from './handlers.ts';
import { errnoOf, type Outcome, refuse } from './outcome.ts';

/** A vCPU that commands and event replies are for. */
interface DispatchVcpu extends VcpuContext {
  enqueue(job: () => Awaitable<void>): void;
  reply(seq: number, head: ReceivedEventReply, payload: Uint8Array): void;
}

/** What carrying out a message needs of the hook. */
export interface DispatchHook extends VmContext {
  readonly vcpus: readonly DispatchVcpu[];
  send(message: Uint8Array): void;
  sendVmEvent<N extends EventName>(name: N, data: EventData[N]): boolean;
}

/** What is left of a command while it is carried out. */
interface Request extends Answering {
  readonly id: number;
  readonly seq: number;
  readonly definition: CommandDefinition | undefined;
}

/** Carries out one message, or queues it to its vCPU. Throws ProtocolError for what closes the connection. */
export function dispatch(hook: DispatchHook, id: number, seq: number, payload: Uint8Array): Awaitable<void> {
  if (id === hook.dialect.messages.eventReply) return eventReply(hook, id, seq, payload);
  const definition = hook.dialect.commandById(id);
  const request: Request = { id, seq, definition, silent: !hook.responses.enabled };
  if (!definition) {
    if (request.silent) throw new ProtocolError(`unknown message ${id} while replies are off`);
    return finish(hook, request, KVM_ERRNO.KVM_ENOSYS);
  }
  if (!hook.permissions.commandAllowed(id)) {
    if (request.silent) throw new ProtocolError(`${definition.name} is not allowed, and replies are off`);
    return finish(hook, request, KVM_ERRNO.KVM_EPERM);
  }
  const command = decodeCommand(definition, payload);
  if (definition.runsOn === 'receiver') {
    const handler = VM_HANDLERS[definition.name];
    return settle(hook, request, () => handler(hook, command as never, request));
  }
  const vcpu = findVcpu(hook, command.vcpu, command.headerPadding, definition.name);
  if (typeof vcpu === 'number') return finish(hook, request, vcpu);
  const handler = VCPU_HANDLERS[definition.name];
  vcpu.enqueue(() =>
    hook.guarded(() => settle(hook, request, () => handler(vcpu, command as never, request))),
  );
}

/** The vCPU of a message, or the error number that the message is answered with. */
function findVcpu(
  hook: DispatchHook,
  index: number,
  headerPadding: boolean,
  what: string,
): DispatchVcpu | number {
  if (headerPadding)
    return refuse(hook.rules.headerPadding, `${what}: padding in the vCPU header is not zero`);
  const vcpu = hook.vcpus[index];
  if (!vcpu) return KVM_ERRNO.KVM_EINVAL;
  return vcpu.waiting || vcpu.vcpu.started ? vcpu : KVM_ERRNO.KVM_EAGAIN;
}

function eventReply(hook: DispatchHook, id: number, seq: number, payload: Uint8Array): void {
  const head = decodeEventReply(payload);
  if (!head) throw new ProtocolError(`an event reply has ${payload.length} bytes; at least 16 are needed`);
  const vcpu = findVcpu(hook, head.vcpu, head.headerPadding, 'event reply');
  if (typeof vcpu === 'number') {
    hook.send(encodeErrorReply(id, seq, vcpu));
    return;
  }
  vcpu.reply(seq, head, payload);
}

/** Runs a handler and answers with what it returns, or with the error number of what it throws. */
function settle(hook: DispatchHook, request: Request, run: () => Awaitable<Outcome>): Awaitable<void> {
  const outcome = attempt(run, (error) => errnoOf(error, hook.log, request.definition!.name));
  return then(outcome, (value) => finish(hook, request, value));
}

/** Answers a command. */
function finish(hook: DispatchHook, request: Request, outcome: Outcome): void {
  const { id, seq } = request;
  if (request.silent) {
    finishSilently(hook, request, outcome);
  } else if (typeof outcome === 'number') {
    hook.send(encodeErrorReply(id, seq, outcome));
  } else if (outcome instanceof Uint8Array) {
    putHeader(outcome, 0, id, outcome.length - 8, seq);
    hook.send(outcome);
  } else {
    hook.send(encodeReply(request.definition!, seq, outcome as never));
  }
}

function finishSilently(hook: DispatchHook, request: Request, outcome: Outcome): void {
  if (typeof outcome !== 'number') {
    throw new ProtocolError(`${request.definition?.name} returns data, and replies are off`);
  }
  if (outcome === 0 || !hook.responses.errorsAsEvents || !hook.vmEvents.has('CMD_ERROR')) return;
  hook.sendVmEvent('CMD_ERROR', { err: -outcome, msg_seq: request.seq, msg_id: request.id });
}
