import assert from 'node:assert/strict';
import { KVM_ERRNO } from '../../src/abi/errno.ts';
import { Introspection, type Log } from '../../src/host/index.ts';
import type { CapabilityName, Machine } from '../../src/machine/index.ts';
import { loopback } from '../../src/transport/index.ts';
import type { Dialect, DialectName, EventName } from '../../src/wire/index.ts';
import { DIALECTS } from '../../src/wire/index.ts';
import { Peer, patiently } from '../kit/peer.ts';
import type { GuestAction, RunningSubject, SubjectGuest } from './subject.ts';
import type { Support } from './support.ts';

export const UUID = Uint8Array.from({ length: 16 }, (_, i) => i * 17);

/** One hooked machine with a bare peer at the other end. */
export class Rig {
  readonly machine: Machine;
  readonly guest: SubjectGuest;
  readonly dialect: Dialect;
  readonly introspection: Introspection;
  readonly log: string[] = [];
  readonly #support: Support | undefined;
  #peer: Peer | undefined;

  constructor(subject: RunningSubject, dialect: DialectName, support?: Support) {
    this.#support = support;
    this.machine = subject.machine;
    this.guest = subject.guest;
    this.dialect = DIALECTS[dialect];
    this.introspection = new Introspection(subject.machine, { dialect, log: collect(this.log) });
  }

  get peer(): Peer {
    assert.ok(this.#peer, 'the row has hooked the machine');
    return this.#peer;
  }

  /** HOOK with a fresh connection; its result. */
  async hook(): Promise<number> {
    const [host, tool] = loopback();
    const peer = new Peer(tool, this.dialect);
    peer.onSeen = (name) => this.#support?.saw(this.dialect.name, name);
    const result = await this.introspection.hook({ socket: host, uuid: UUID });
    if (result === 0) this.#peer = peer;
    return result;
  }

  /** HOOK and both permissions for everything, as device managers do. */
  async hookAll(): Promise<void> {
    assert.equal(await this.hook(), 0, 'HOOK');
    assert.equal(await this.introspection.command({ allow: 1, id: -1 }), 0, 'allow all commands');
    assert.equal(await this.introspection.event({ allow: 1, id: -1 }), 0, 'allow all events');
  }

  async unhook(): Promise<void> {
    assert.equal(await patiently(this.introspection.unhook(), 'UNHOOK'), 0, 'UNHOOK');
  }

  eventId(name: EventName): number {
    return this.dialect.event(name)!.id;
  }

  /** VCPU_CONTROL_EVENTS that must succeed. */
  async enable(name: EventName, enable = 1, vcpu = 0): Promise<void> {
    const { err } = await this.peer.command(
      'VCPU_CONTROL_EVENTS',
      { event_id: this.eventId(name), enable },
      vcpu,
    );
    assert.equal(err, 0, `${enable ? 'enable' : 'disable'} ${name}`);
  }

  /** The payload of an event with `data` bytes of its own. */
  eventSize(data: number): number {
    return this.dialect.eventHeaderSize + 544 + data;
  }

  /** The connection is closed, by the host side, because of what was just sent. */
  async expectClosed(why: string): Promise<void> {
    await patiently(this.peer.closed, `the connection to be closed: ${why}`);
  }
}

function collect(lines: string[]): Log {
  const add =
    (level: string) =>
    (message: string): void => {
      lines.push(`${level}: ${message}`);
    };
  return { info: add('info'), warn: add('warning'), error: add('error') };
}

/** A step of the checklist. */
export interface Row {
  /** Numbers of the rows of the checklist that it covers; `x` for rows beyond it. */
  readonly rows: string;
  readonly title: string;
  readonly dialects?: readonly DialectName[];
  readonly needs?: readonly CapabilityName[];
  readonly actions?: readonly GuestAction[];
  /** The vCPUs have to stand still at first. */
  readonly holds?: true;
  /** vCPU 1 has to be one that is not started at first. */
  readonly starts?: true;
  /** The stop for a write to the test page has to come before the write. */
  readonly beforeWrite?: true;
  run(rig: Rig): Promise<void>;
}

/** A row for a machine that is hooked, everything allowed; it is unhooked afterwards. */
export function hooked(
  rows: string,
  title: string,
  options: Pick<Row, 'dialects' | 'needs' | 'actions' | 'holds' | 'starts' | 'beforeWrite'>,
  run: (rig: Rig) => Promise<void>,
): Row {
  return {
    rows,
    title,
    ...options,
    async run(rig) {
      await rig.hookAll();
      await run(rig);
      await rig.unhook();
    },
  };
}

export const EINVAL = -KVM_ERRNO.KVM_EINVAL;
export const EPERM = -KVM_ERRNO.KVM_EPERM;
export const ENOENT = -KVM_ERRNO.KVM_ENOENT;
export const EBUSY = -KVM_ERRNO.KVM_EBUSY;
export const EAGAIN = -KVM_ERRNO.KVM_EAGAIN;
export const EOPNOTSUPP = -KVM_ERRNO.KVM_EOPNOTSUPP;
export const ENOSYS = -KVM_ERRNO.KVM_ENOSYS;
