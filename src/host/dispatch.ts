import { KVM_ERRNO } from '../abi/errno.ts';
import { type Awaitable, attempt, then } from '../awaitable.ts';
import {
  type CommandDefinition,
  decodeCommand,
  decodeEventReply,
  encodeErrorReply,
  encodeReply,
  ProtocolError,
  putHeader,
  type ReceivedCommand,
} from '../wire/index.ts';
import type { Hook } from './hook.ts';
import type { HookedVcpu } from './hooked-vcpu.ts';
import { errnoOf, type Outcome, refuse } from './outcome.ts';
import { VCPU_COMMANDS } from './vcpu-commands.ts';
import { VCPU_VIEW_COMMANDS, VM_VIEW_COMMANDS } from './view-commands.ts';
import { VM_COMMANDS } from './vm-commands.ts';

/** What is left of a command while it is carried out. */
export interface Request {
  readonly id: number;
  readonly seq: number;
  readonly definition: CommandDefinition | undefined;
  /** Replies were off when it was received (dialect v7, VM_CONTROL_CMD_RESPONSE). */
  silent: boolean;
}

/** Carries out one message, or queues it to its vCPU. Throws ProtocolError for what closes the connection. */
export function dispatch(hook: Hook, id: number, seq: number, payload: Uint8Array): Awaitable<void> {
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
    const handler = VM_COMMANDS[definition.name] ?? VM_VIEW_COMMANDS[definition.name];
    return settle(hook, request, () => handler!(hook, command as never, request));
  }
  const vcpu = findVcpu(hook, command.vcpu, command.headerPadding, definition.name);
  if (typeof vcpu === 'number') return finish(hook, request, vcpu);
  return queue(hook, vcpu, request, command);
}

/** The vCPU of a message, or the error number that the message is answered with. */
function findVcpu(hook: Hook, index: number, headerPadding: boolean, what: string): HookedVcpu | number {
  if (headerPadding)
    return refuse(hook.rules.headerPadding, `${what}: padding in the vCPU header is not zero`);
  const vcpu = hook.vcpus[index];
  if (!vcpu) return KVM_ERRNO.KVM_EINVAL;
  return vcpu.waiting || vcpu.vcpu.started ? vcpu : KVM_ERRNO.KVM_EAGAIN;
}

function queue(hook: Hook, vcpu: HookedVcpu, request: Request, command: ReceivedCommand): void {
  const { name } = command.definition;
  const handler = VCPU_COMMANDS[name] ?? VCPU_VIEW_COMMANDS[name];
  vcpu.enqueue(() =>
    hook.guarded(() => settle(hook, request, () => handler!(vcpu, command as never, request))),
  );
}

function eventReply(hook: Hook, id: number, seq: number, payload: Uint8Array): void {
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
function settle(hook: Hook, request: Request, run: () => Awaitable<Outcome>): Awaitable<void> {
  const outcome = attempt(run, (error) => errnoOf(error, hook.log, request.definition!.name));
  return then(outcome, (value) => finish(hook, request, value));
}

/** Answers a command. */
function finish(hook: Hook, request: Request, outcome: Outcome): void {
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

function finishSilently(hook: Hook, request: Request, outcome: Outcome): void {
  if (typeof outcome !== 'number') {
    throw new ProtocolError(`${request.definition?.name} returns data, and replies are off`);
  }
  if (outcome === 0 || !hook.responses.errorsAsEvents || !hook.vmEvents.has('CMD_ERROR')) return;
  hook.sendVmEvent('CMD_ERROR', { err: -outcome, msg_seq: request.seq, msg_id: request.id });
}
