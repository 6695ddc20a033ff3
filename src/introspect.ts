import { hookError } from './host/hook-error.ts';
import { Introspection, type Log } from './host/index.ts';
import type { Machine } from './machine/index.ts';
import { type ConnectGuestOptions, connectGuest, type Guest } from './tool/index.ts';
import { type Channel, type ChannelHandler, ChannelWrapper, loopback } from './transport/index.ts';
import type { DialectName } from './wire/index.ts';

export interface IntrospectOptions
  extends Pick<ConnectGuestOptions, 'requestTimeout' | 'onError' | 'symbols'> {
  /** Default v12. v9 and v7 have commands that v12 has not; see docs/reference/protocol.md. */
  readonly dialect?: DialectName;
  /** Where the host side reports. Default: nowhere. */
  readonly log?: Log;
}

/**
 * Hooks a machine to this program: host side and tool in one process, over the same messages as through
 * a socket.
 *
 * ```ts
 * const machine = await openQemu({ qmp: '/run/vm.qmp' });
 * const guest = await introspect(machine);
 * console.log((await guest.vcpus[0].registers()).rip);
 * await guest.detach(); // everything is undone and the machine is unhooked
 * await machine.close();
 * ```
 *
 * @throws KvmiError with code E_BUSY when somebody else holds the machine, E_HOOK when it cannot be hooked for another
 *   reason.
 */
export async function introspect(machine: Machine, options: IntrospectOptions = {}): Promise<Guest> {
  const { dialect = 'v12', log, ...tool } = options;
  const introspection = new Introspection(machine, { dialect, ...(log && { log }) });
  const [hostEnd, toolEnd] = loopback();
  const result = await introspection.hook({ socket: hostEnd });
  if (result !== 0) {
    throw hookError(machine.name, result, introspection.lastError);
  }
  await introspection.command({ allow: 1, id: -1 });
  await introspection.event({ allow: 1, id: -1 });
  const memoryMap = machine.memory.regions.map(({ gpa, size }) => ({ address: gpa, length: size, type: 1 }));
  const { name, uuid, startTime } = machine;
  return connectGuest(new UnhookingChannel(toolEnd, introspection), {
    ...tool,
    probes: introspection.probes,
    dialect,
    hello: { name, uuid, startTime, memoryMap },
  });
}

/** A channel whose end is told only after the machine is unhooked: `guest.detach()` then means both. */
class UnhookingChannel extends ChannelWrapper {
  readonly #introspection: Introspection;

  constructor(inner: Channel, introspection: Introspection) {
    super(inner);
    this.#introspection = introspection;
  }

  override open(handler: ChannelHandler): void {
    this.inner.open({
      data: (bytes) => handler.data(bytes),
      drain: () => handler.drain?.(),
      close: (error) =>
        void this.#introspection
          .unhook()
          .finally(() => handler.close(error ?? this.#introspection.machineError)),
    });
  }
}
