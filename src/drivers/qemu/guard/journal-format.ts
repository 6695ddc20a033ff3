import { basename, dirname, isAbsolute } from 'node:path';
import type { ProcessIdentity } from '../../../system/proc.ts';
import { VCPU_LIMIT } from '../gdb.ts';
import type { QmpAddress } from '../qmp.ts';
import type { StubPlan } from '../stub.ts';
import { isWorkspace } from '../workspace.ts';
import type { BorrowedVcpu } from './borrowed-vcpu.ts';
import type { JournalState } from './journal.ts';
import type { VmIdentity } from './vm-identity.ts';

/*
 * What is read is checked down to the last member: it decides what is written into a guest. What does not fit throws.
 */

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const HEX = /^[0-9a-f]{1,16}$/;
const REGISTER = /^[a-z0-9_]{2,8}$/;
/** As QEMU allows them, and as only kvmi names them. */
const NODE = /^kvmi-[a-z0-9-]{1,26}$/;
const TEXT_LIMIT = 4096;

type Fields = Readonly<Record<string, unknown>>;

export function parseState(text: string): JournalState {
  const state = fields(JSON.parse(text));
  return {
    vm: vmIdentity(fields(state.vm)),
    monitor: monitor(fields(state.monitor)),
    host: processIdentity(fields(state.host)),
    guard: processIdentity(fields(state.guard)),
    tcg: truth(state.tcg),
    workspace: workspace(state.workspace),
    stub: stub(fields(state.stub)),
    running: truth(state.running),
    patches: list(state.patches).map((entry) => {
      const [gpa, original] = list(entry);
      return [whole(gpa), orNull(original, (byte) => whole(byte, 0xff))] as const;
    }),
    handlers: list(state.handlers).map((gva) => fitting(gva, HEX)),
    borrowed: orNull(state.borrowed, (value) => borrowed(fields(value))),
    migrationEvents: truth(state.migrationEvents),
    nodes: list(state.nodes).map((node) => fitting(node, NODE)),
  };
}

function borrowed({ vcpu, registers, places }: Fields): BorrowedVcpu {
  return {
    vcpu: whole(vcpu, VCPU_LIMIT),
    registers: list(registers).map((entry) => {
      const [name, value] = list(entry);
      return [fitting(name, REGISTER), fitting(value, HEX)] as const;
    }),
    places: list(places).map((rip) => fitting(rip, HEX)),
  };
}

function vmIdentity({ uuid, pid, started, socket, peer }: Fields): VmIdentity {
  return {
    uuid: fitting(uuid, UUID),
    pid: orNull(pid, whole),
    started: orNull(started, whole),
    socket: orNull(socket, words),
    peer: orNull(peer, whole),
  };
}

function processIdentity({ pid, started }: Fields): ProcessIdentity {
  return { pid: whole(pid), started: whole(started) };
}

function monitor({ qmp, libvirt, uri }: Fields): QmpAddress {
  if (qmp !== undefined) return { qmp: words(qmp) };
  return { libvirt: words(libvirt), ...(uri !== undefined && { uri: words(uri) }) };
}

function stub({ address, own }: Fields): StubPlan {
  const { path, host, port } = fields(address);
  return {
    address: path !== undefined ? { path: words(path) } : { host: words(host), port: whole(port, 0xffff) },
    own: truth(own),
  };
}

function workspace(value: unknown): string {
  const path = words(value);
  if (isAbsolute(path) && isWorkspace(dirname(path), basename(path))) return path;
  throw new TypeError('not a workspace');
}

function fields(value: unknown): Fields {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
  throw new TypeError('not an object');
}

function list(value: unknown): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw new TypeError('not a list');
}

function truth(value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw new TypeError('not a truth value');
}

function words(value: unknown): string {
  if (typeof value === 'string' && value.length <= TEXT_LIMIT && !value.includes('\0')) return value;
  throw new TypeError('not a text');
}

function fitting(value: unknown, pattern: RegExp): string {
  if (typeof value === 'string' && pattern.test(value)) return value;
  throw new TypeError(`not ${pattern}`);
}

function whole(value: unknown, most = Number.MAX_SAFE_INTEGER): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value <= most) return value;
  throw new TypeError('not a number');
}

function orNull<T>(value: unknown, parse: (value: unknown) => T): T | null {
  return value === null ? null : parse(value);
}
