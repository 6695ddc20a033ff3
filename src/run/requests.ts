import { getU64Number } from '../abi/bytes.ts';
import { IOCTL_TABLES, KVM_CAP_INTROSPECTION_V10, KVM_CHECK_EXTENSION } from '../abi/ioctl.ts';
import type { DialectName } from '../wire/index.ts';

/** What the VMM of `kvmi run` may speak. `auto`: by the request numbers, v9 or v12. */
export type RunDialect = DialectName | 'auto';

/** The request numbers of both series. */
export const INTROSPECTION_REQUESTS: readonly number[] = [IOCTL_TABLES.v9, IOCTL_TABLES.v12].flatMap(
  ({ requests }) => Object.values(requests),
);

/** The capabilities that are answered instead of by the kernel. */
export function capabilitiesOf(dialect: RunDialect): number[] {
  switch (dialect) {
    case 'auto':
      return [IOCTL_TABLES.v9.capability, KVM_CAP_INTROSPECTION_V10];
    case 'v12':
      return [KVM_CAP_INTROSPECTION_V10, IOCTL_TABLES.v12.capability];
    default:
      return [IOCTL_TABLES[dialect].capability];
  }
}

const V9_REQUESTS: ReadonlySet<number> = new Set(Object.values(IOCTL_TABLES.v9.requests));

/** The dialect that a request is of. */
export function dialectOf(request: number, dialect: RunDialect): DialectName {
  if (dialect !== 'auto') return dialect;
  return V9_REQUESTS.has(request) ? 'v9' : 'v12';
}

/** How many bytes the argument of an introspection request points to (the size is in the number). */
export function argumentSize(request: number): number {
  return (request >>> 16) & 0x3fff;
}

export interface InterceptedIoctl {
  /** Identifies the notification. */
  readonly id: bigint;
  /** The thread that makes the request. */
  readonly tid: number;
  readonly fd: number;
  readonly request: number;
  readonly argument: number;
}

export function isCapabilityCheck(request: number): boolean {
  return request === KVM_CHECK_EXTENSION;
}

/** What KVM_CHECK_EXTENSION returns for a capability of {@link capabilitiesOf}: the version of the interface, or 0. */
export function capabilityVersion(capability: number, enabled: boolean): number {
  const table = Object.values(IOCTL_TABLES).find((each) => each.capability === capability);
  const hides = table?.hidesWhenDisabled ?? capability === KVM_CAP_INTROSPECTION_V10;
  return enabled || !hides ? 1 : 0;
}

/** Reads a seccomp notification of an ioctl(2). */
export function readNotification(bytes: Uint8Array): InterceptedIoctl {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return {
    id: view.getBigUint64(0, true),
    tid: view.getUint32(8, true),
    fd: view.getInt32(32, true),
    request: view.getUint32(40, true),
    argument: getU64Number(bytes, 48),
  };
}
