import { ERRNO } from '../abi/errno.ts';
import type { CommandName, Dialect, EventName } from '../wire/index.ts';

/** Commands that the device manager cannot take away (kvmi.rst, "KVM_INTROSPECTION_COMMAND"). */
const ALWAYS_ALLOWED: readonly CommandName[] = ['GET_VERSION', 'VM_CHECK_COMMAND', 'VM_CHECK_EVENT'];

/**
 * What the tool may ask for: two sets of ids that the device manager controls. After a hook no event and
 * only the three commands that are always allowed are in them.
 */
export class Permissions {
  readonly #dialect: Dialect;
  readonly #always: ReadonlySet<number>;
  #commands: Set<number>;
  #events = new Set<number>();

  constructor(dialect: Dialect) {
    this.#dialect = dialect;
    this.#always = new Set(ALWAYS_ALLOWED.map((name) => dialect.command(name)!.id));
    this.#commands = new Set(this.#always);
  }

  /** Whether the id of a command (or, in v9, of the event message) is allowed. */
  commandAllowed(id: number): boolean {
    return this.#commands.has(id);
  }

  eventAllowed(id: number): boolean {
    return this.#events.has(id);
  }

  eventNameAllowed(name: EventName): boolean {
    const definition = this.#dialect.event(name);
    return definition !== undefined && this.#events.has(definition.id);
  }

  /** KVM_INTROSPECTION_COMMAND after its argument was checked: 0 or a negative errno. */
  allowCommand(id: number, allow: boolean): number {
    if (id === -1) {
      this.#commands = new Set(allow ? this.#allCommandIds() : this.#always);
      return 0;
    }
    if (!allow && this.#always.has(id)) return -ERRNO.EPERM;
    if (allow) this.#commands.add(id);
    else this.#commands.delete(id);
    return 0;
  }

  /** KVM_INTROSPECTION_EVENT after its argument was checked: always 0. */
  allowEvent(id: number, allow: boolean): number {
    if (id === -1) this.#events = new Set(allow ? this.#dialect.events.map((event) => event.id) : []);
    else if (allow) this.#events.add(id);
    else this.#events.delete(id);
    return 0;
  }

  #allCommandIds(): number[] {
    const { eventReply } = this.#dialect.messages;
    return [eventReply, ...this.#dialect.commands.map((command) => command.id)];
  }
}
