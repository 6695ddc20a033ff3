import type { Walk } from '../reading/walk.ts';
import { bootTimeOf, pointInTime, readClock } from './clock.ts';
import type { Session } from './session.ts';

/** The guest as uname(1) and uptime(1) show it. */
export interface SystemInfo {
  /** The host name that the guest has given itself. */
  readonly node: string;
  readonly release: string;
  readonly version: string;
  readonly banner: string;
  /** Empty before Linux 5.9. */
  readonly buildId: string;
  /** Nanoseconds since 1970 by the guest's own clock; undefined when that is not known. */
  readonly time: bigint | undefined;
  readonly bootTime: bigint | undefined;
  readonly uptimeSeconds: number;
  /** 48 or 57: the width of virtual addresses. */
  readonly addressBits: number;
}

export function* systemInfo(session: Session): Walk<SystemInfo[]> {
  const { kernel } = session;
  const clock = yield* readClock(session);
  const uts = yield* session.attempt('the name of the system', utsName(session), undefined);
  return [
    {
      node: uts?.text('node') ?? '',
      release: uts?.text('release') ?? kernel.release,
      version: uts?.text('version') ?? '',
      banner: kernel.banner,
      buildId: kernel.buildId ?? '',
      time: clock && pointInTime(clock.realtime),
      bootTime: clock && pointInTime(bootTimeOf(clock)),
      uptimeSeconds: clock === undefined ? 0 : Number(clock.sinceBoot / 10_000_000n) / 100,
      addressBits: kernel.paging.mode === '5-level' ? 57 : 48,
    },
  ];
}

function* utsName(session: Session) {
  const namespace = session.symbol('init_uts_ns');
  const { offset } = session.kernel.layouts.field('utsNamespace', 'name');
  return yield* session.object('utsName', namespace + BigInt(offset));
}
