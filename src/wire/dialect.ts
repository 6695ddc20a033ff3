import type { Struct } from '../abi/struct.ts';
import { KvmiError } from '../error.ts';
import type { Body } from './body.ts';
import type { CommandName, EventName, Replies, Requests, VcpuCommandName, VmCommandName } from './names.ts';

export type DialectName = 'v7' | 'v9' | 'v12';

/** The action byte of an event reply (kvmi.rst, KVMI_EVENT_ACTION_*). */
export const ACTION = { continue: 0, retry: 1, crash: 2 } as const;
export type Action = keyof typeof ACTION;

/** Which thread of the host side carries a command out: the receiver, or the vCPU between guest entries. */
type Place =
  | { readonly name: VmCommandName; readonly runsOn: 'receiver' }
  | { readonly name: VcpuCommandName; readonly runsOn: 'vcpu' };

interface Definition<N extends CommandName> {
  readonly name: N;
  readonly id: number;
  /** Where the vCPU's index is: nowhere, in a vCPU header before the body, or in the body itself. */
  readonly vcpuIn: 'nowhere' | 'header' | 'body';
  readonly request: Body<Requests[N]>;
  readonly reply: Body<Replies[N]>;
}

/** One command of a dialect. */
export type CommandDefinition<N extends CommandName = CommandName> = Definition<N> & Place;

/** One event of a dialect. */
export interface EventDefinition {
  readonly name: EventName;
  readonly id: number;
  /** Which command enables it: VM_CONTROL_EVENTS, VCPU_CONTROL_EVENTS, or both. */
  readonly controlledBy: 'vm' | 'vcpu' | 'both';
  /** Event-specific data. */
  readonly data: Struct<unknown>;
  /** Data of the reply after its header. */
  readonly reply: Struct<unknown>;
  /** Empty when the event has no reply. */
  readonly actions: readonly Action[];
}

/** A numbering of KVMI messages with their layouts, as data. */
export interface Dialect {
  readonly name: DialectName;
  /** Message ids of an event about the VM, an event of a vCPU, and the reply to the latter. */
  readonly messages: { readonly vmEvent: number; readonly event: number; readonly eventReply: number };
  /** Bytes in front of an event's common block: 8 in v12, 0 before. */
  readonly eventHeaderSize: number;
  readonly commands: readonly CommandDefinition[];
  readonly events: readonly EventDefinition[];
  /** Ids at or above these are refused by the COMMAND and EVENT ioctls; undefined: there is no bound. */
  readonly ioctlLimit: { readonly commands: number | undefined; readonly events: number | undefined };
  commandById(id: number): CommandDefinition | undefined;
  command<N extends CommandName>(name: N): CommandDefinition<N> | undefined;
  eventById(id: number): EventDefinition | undefined;
  event(name: EventName): EventDefinition | undefined;
}

/** A tool asked for a message that the dialect does not have. */
export class NotInDialectError extends KvmiError {
  constructor(name: string, dialect: DialectName) {
    super('E_NOT_IN_DIALECT', `${name} does not exist in dialect ${dialect}`, { data: { name, dialect } });
    this.name = 'NotInDialectError';
  }
}

/** Makes a dialect of its tables; ids and names are looked up in constant time. */
export function dialect(
  tables: Pick<Dialect, 'name' | 'messages' | 'eventHeaderSize' | 'commands' | 'events' | 'ioctlLimit'>,
): Dialect {
  const commandById: (CommandDefinition | undefined)[] = [];
  const commandByName = new Map<CommandName, CommandDefinition>();
  const eventById: (EventDefinition | undefined)[] = [];
  const eventByName = new Map<EventName, EventDefinition>();
  for (const command of tables.commands) {
    commandById[command.id] = command;
    commandByName.set(command.name, command);
  }
  for (const event of tables.events) {
    eventById[event.id] = event;
    eventByName.set(event.name, event);
  }
  return {
    ...tables,
    commandById: (id) => commandById[id],
    command: <N extends CommandName>(name: N) =>
      commandByName.get(name) as unknown as CommandDefinition<N> | undefined,
    eventById: (id) => eventById[id],
    event: (name) => eventByName.get(name),
  };
}

/** A row of a command table; keeps the body types tied to the command's name. */
export function command<N extends CommandName>(
  id: number,
  name: N,
  where: N extends VcpuCommandName ? 'vcpu' : 'vm' | 'pause' | 'pause-v12',
  request: Body<Requests[N]>,
  reply: Body<Replies[N]>,
): CommandDefinition {
  const definition: Definition<N> & Pick<Place, 'runsOn'> = {
    id,
    name,
    runsOn: where === 'vcpu' ? 'vcpu' : 'receiver',
    vcpuIn: where === 'vm' ? 'nowhere' : where === 'pause-v12' ? 'body' : 'header',
    request,
    reply,
  };
  return definition as unknown as CommandDefinition;
}

/** A row of an event table. `actions` is what the tool may answer; none means that there is no reply. */
export function event<D, R>(
  id: number,
  name: EventName,
  controlledBy: EventDefinition['controlledBy'],
  data: Struct<D>,
  reply: Struct<R>,
  actions: readonly Action[],
): EventDefinition {
  return {
    id,
    name,
    controlledBy,
    data: data as Struct<unknown>,
    reply: reply as Struct<unknown>,
    actions,
  };
}
