import type { Guest } from '../tool/index.ts';
import { type Channel, listen } from '../transport/index.ts';
import { type SessionOptions, serveGdb } from './session.ts';

export interface GdbServerOptions extends SessionOptions {
  /** Called when a GDB came, and when it left. */
  readonly onSession?: (state: 'attached' | 'detached', peer: string) => void;
}

/** A guest that can be debugged. */
export interface GdbServer {
  /** Where it listens; with the port that the system chose, when it did. */
  readonly address: string;
  /** Listens no more, and detaches the GDB that is there. */
  close(): Promise<void>;
}

/**
 * Listens for GDB at `unix:PATH` or `tcp:HOST:PORT`. One GDB at a time: while it is attached the guest is stopped or
 * runs as it says; others are hung up on. Without one the guest runs.
 *
 * The guest's SINGLESTEP events belong to the server as long as a GDB is attached.
 *
 * @throws KvmiError as `listen` of transport/.
 */
export async function listenGdb(
  guest: Guest,
  address: string,
  options: GdbServerOptions = {},
): Promise<GdbServer> {
  let current: Channel | undefined;
  let session = Promise.resolve();
  const listener = await listen(address, (channel) => {
    if (current) {
      channel.shutdown();
      return;
    }
    current = channel;
    options.onSession?.('attached', channel.peer);
    session = serveGdb(guest, channel, options)
      .catch((error: unknown) => options.onError?.(error as Error))
      .then(() => {
        current = undefined;
        options.onSession?.('detached', channel.peer);
      });
  });
  return {
    address: listener.address,
    async close() {
      await listener.close();
      current?.shutdown();
      await session;
    },
  };
}
