import { type ConnectGuestOptions, connectGuest, type Guest } from '../../src/tool/index.ts';
import { type Channel, loopback } from '../../src/transport/index.ts';
import type { MemoryMapEntry } from '../../src/wire/index.ts';
import { ScriptedHost } from './scripted-host.ts';

/** A tool's guest and the host side that it talks to, in this process. */
export interface Hooked {
  readonly guest: Guest;
  readonly host: ScriptedHost;
  /** What went to `onError`. */
  readonly errors: Error[];
  /** The tool's end. */
  readonly channel: Channel;
}

export interface HookedOptions extends ConnectGuestOptions {
  readonly vcpus?: number;
  readonly memoryMap?: readonly MemoryMapEntry[];
  /** Scripts the host side before the tool connects. */
  readonly prepare?: (host: ScriptedHost) => void;
}

/** Connects a guest to a scripted host over a loopback pair. */
export async function hooked(options: HookedOptions = {}): Promise<Hooked> {
  const [channel, other] = loopback();
  const { dialect = 'v12', vcpus = 2, memoryMap = [], prepare, ...rest } = options;
  const host = new ScriptedHost(other, { vcpus, dialect: dialect === 'auto' ? 'v12' : dialect });
  prepare?.(host);
  host.open();
  const errors: Error[] = [];
  const hello = { name: 'guest', uuid: new Uint8Array(16), startTime: 0, memoryMap };
  const guest = await connectGuest(channel, {
    dialect,
    hello,
    onError: (error) => errors.push(error),
    ...rest,
  });
  return { guest, host, errors, channel };
}

/** The code of the KvmiError that `promise` rejects with; `resolved` when it does not. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return 'resolved';
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}
