import type { Awaitable } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import type { Gva } from '../machine/index.ts';
import { hex, unhex } from '../rsp/hex.ts';
import { MAX_PACKET } from '../rsp/packets.ts';
import type { GuestVcpu } from '../tool/index.ts';
import type { BreakpointType } from './breakpoints.ts';
import type { Resumption } from './execution.ts';
import { assignedValue, REGISTERS, registerText, TARGET_XML } from './registers.ts';
import type { Session } from './session.ts';
import { threadId } from './thread.ts';

/** What a packet is answered with; undefined: nothing, the next stop answers it. */
type Reply = string | Uint8Array | undefined;
type Handler = (session: Session, rest: string, data: Uint8Array) => Awaitable<Reply>;

const OK = 'OK';
const UNKNOWN = '';
/** Numbers of errno, as GDB prints them. */
const ERROR = { failed: 'E01', fault: 'E14', invalid: 'E22' } as const;
const PAGE = 4096;
/** Bytes of memory in one answer. */
const MAX_READ = MAX_PACKET / 2 - 8;
const MAX_GVA = (1n << 64n) - 1n;

/** By the start of the packet; the first that fits. `anytime`: also while the guest runs. */
const HANDLERS: readonly { readonly start: string; readonly handler: Handler; readonly anytime?: boolean }[] =
  [
    { start: 'qXfer:features:read:target.xml:', handler: targetXml, anytime: true },
    { start: 'vMustReplyEmpty', handler: () => UNKNOWN, anytime: true },
    { start: 'QStartNoAckMode', handler: startNoAckMode, anytime: true },
    { start: 'qThreadExtraInfo,', handler: threadExtraInfo },
    { start: 'qsThreadInfo', handler: () => 'l', anytime: true },
    { start: 'qfThreadInfo', handler: threads, anytime: true },
    { start: 'qSupported', handler: supported, anytime: true },
    { start: 'qAttached', handler: () => '1', anytime: true },
    { start: 'qSymbol', handler: () => OK, anytime: true },
    { start: 'vCont?', handler: () => 'vCont;c;C;s;S;t', anytime: true },
    { start: 'vCont;', handler: vCont },
    { start: 'qC', handler: (session) => `QC${threadId(session.selected)}`, anytime: true },
    { start: 'H', handler: selectThread },
    { start: 'T', handler: (session, rest) => (vcpuOf(session, rest) ? OK : ERROR.failed), anytime: true },
    { start: '?', handler: (session) => session.stopReply() },
    { start: 'g', handler: readRegisters },
    { start: 'G', handler: writeRegisters },
    { start: 'p', handler: readRegister },
    { start: 'P', handler: writeRegister },
    { start: 'm', handler: readMemory },
    { start: 'M', handler: writeMemory },
    { start: 'X', handler: writeBinary },
    { start: 'Z0,', handler: (session, rest) => insert(session, 'software', rest) },
    { start: 'Z1,', handler: (session, rest) => insert(session, 'hardware', rest) },
    { start: 'z0,', handler: (session, rest) => remove(session, 'software', rest) },
    { start: 'z1,', handler: (session, rest) => remove(session, 'hardware', rest) },
    { start: 's', handler: (session, rest) => resumeAt(session, rest, 'step') },
    { start: 'c', handler: (session, rest) => resumeAt(session, rest, 'continue') },
    { start: 'D', handler: detach, anytime: true },
    { start: 'k', handler: kill, anytime: true },
  ];

/** Carries a packet out. What is not known is answered with nothing, as GDB expects it. */
export async function answer(session: Session, data: Uint8Array): Promise<Reply> {
  const text = Buffer.from(data).toString('latin1');
  const found = HANDLERS.find(({ start }) => text.startsWith(start));
  if (!found) return UNKNOWN;
  if (session.execution.running && !found.anytime) return ERROR.failed;
  return found.handler(session, text.slice(found.start.length), data);
}

function supported(session: Session, rest: string): Reply {
  session.swbreak = rest.split(/[:;]/).includes('swbreak+');
  const size = MAX_PACKET.toString(16);
  return `PacketSize=${size};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;multiprocess-`;
}

function startNoAckMode(session: Session): Reply {
  session.acknowledging = false;
  return OK;
}

function targetXml(_session: Session, rest: string): Reply {
  const [offset, length] = rest.split(',').map((digits) => number(digits));
  if (offset === undefined || length === undefined) return ERROR.invalid;
  const end = offset + Math.min(length, MAX_PACKET / 2);
  return `${end < TARGET_XML.length ? 'm' : 'l'}${TARGET_XML.slice(offset, end)}`;
}

function threads({ execution: { guest } }: Session): Reply {
  return `m${guest.vcpus.map(threadId).join(',')}`;
}

async function threadExtraInfo(session: Session, rest: string): Promise<Reply> {
  const vcpu = vcpuOf(session, rest);
  if (!vcpu) return ERROR.failed;
  const registers = await session.execution.registers(vcpu);
  const where = registers ? `cr3 0x${registers.cr3.toString(16)}` : 'not started';
  return hex(Buffer.from(`vCPU ${vcpu.index}, ${where}`));
}

/** Undefined for an id that no vCPU has. */
function vcpuOf({ execution: { guest } }: Session, id: string): GuestVcpu | undefined {
  const thread = number(id);
  return thread === undefined ? undefined : guest.vcpus[thread - 1];
}

function selectThread(session: Session, rest: string): Reply {
  const [operation, id] = [rest[0], rest.slice(1)];
  if (operation !== 'g' && operation !== 'c') return ERROR.invalid;
  // 0 is any of them, -1 all.
  if (id === '0' || id === '-1') return OK;
  const vcpu = vcpuOf(session, id);
  if (!vcpu) return ERROR.failed;
  session.selected = vcpu;
  return OK;
}

async function readRegisters({ execution, selected }: Session): Promise<Reply> {
  const source = await execution.source(selected);
  return REGISTERS.map((register) => registerText(register, source)).join('');
}

async function readRegister({ execution, selected }: Session, rest: string): Promise<Reply> {
  const register = REGISTERS[number(rest) ?? -1];
  return register ? registerText(register, await execution.source(selected)) : ERROR.invalid;
}

async function writeRegister({ execution, selected }: Session, rest: string): Promise<Reply> {
  const [digits = '', text = ''] = rest.split('=');
  const register = REGISTERS[number(digits) ?? -1];
  const bytes = unhex(text);
  const registers = await execution.registers(selected);
  const value = register && bytes && registers && assignedValue(register, bytes, registers);
  if (value === undefined) return ERROR.invalid;
  registers![register!.assigns!] = value;
  await execution.assign(selected, registers!);
  return OK;
}

/** Registers that cannot be set are passed over. */
async function writeRegisters({ execution, selected }: Session, rest: string): Promise<Reply> {
  const registers = await execution.registers(selected);
  if (!registers) return ERROR.failed;
  let at = 0;
  for (const register of REGISTERS) {
    const bytes = unhex(rest.slice(at, at + 2 * register.bytes));
    at += 2 * register.bytes;
    const value = bytes && assignedValue(register, bytes, registers);
    if (value !== undefined) registers[register.assigns!] = value;
  }
  await execution.assign(selected, registers);
  return OK;
}

/** As much as is mapped, page by page. */
async function readMemory({ execution, selected }: Session, rest: string): Promise<Reply> {
  const range = rangeOf(rest);
  if (!range) return ERROR.invalid;
  const into = new Uint8Array(Math.min(range.size, MAX_READ));
  let done = 0;
  while (done < into.length) {
    const gva = BigInt.asUintN(64, range.gva + BigInt(done));
    const size = Math.min(into.length - done, PAGE - Number(gva % BigInt(PAGE)));
    if (!(await execution.breakpoints.read(selected, gva, into.subarray(done, done + size)))) break;
    done += size;
  }
  return done === 0 && into.length > 0 ? ERROR.fault : hex(into.subarray(0, done));
}

async function writeMemory(session: Session, rest: string): Promise<Reply> {
  const colon = rest.indexOf(':');
  const range = rangeOf(rest.slice(0, Math.max(0, colon)));
  const bytes = unhex(rest.slice(colon + 1));
  return range && bytes?.length === range.size ? write(session, range.gva, bytes) : ERROR.invalid;
}

async function writeBinary(session: Session, rest: string, data: Uint8Array): Promise<Reply> {
  const colon = rest.indexOf(':');
  const range = rangeOf(rest.slice(0, Math.max(0, colon)));
  const bytes = data.subarray(1 + colon + 1);
  return range && bytes.length === range.size ? write(session, range.gva, bytes) : ERROR.invalid;
}

async function write(session: Session, gva: Gva, bytes: Uint8Array): Promise<Reply> {
  if (bytes.length === 0) return OK;
  const { execution, selected } = session;
  return (await execution.breakpoints.write(selected, gva, bytes, session.report)) ? OK : ERROR.fault;
}

async function insert({ execution, selected }: Session, type: BreakpointType, rest: string): Promise<Reply> {
  const gva = rangeOf(rest)?.gva;
  if (gva === undefined) return ERROR.invalid;
  try {
    return (await execution.breakpoints.insert(type, gva, selected)) ? OK : ERROR.failed;
  } catch (error) {
    if (error instanceof KvmiError && error.code === 'E_NOT_MAPPED') return ERROR.fault;
    throw error;
  }
}

async function remove({ execution }: Session, type: BreakpointType, rest: string): Promise<Reply> {
  const gva = rangeOf(rest)?.gva;
  if (gva === undefined) return ERROR.invalid;
  await execution.breakpoints.remove(type, gva);
  return OK;
}

/** `c` lets every vCPU run, `s` steps the selected one alone. */
async function resumeAt(session: Session, rest: string, how: Resumption): Promise<Reply> {
  const { execution, selected } = session;
  if (rest !== '') {
    const rip = address(rest);
    const registers = await execution.registers(selected);
    if (rip === undefined || !registers) return ERROR.invalid;
    registers.rip = rip;
    await execution.assign(selected, registers);
  }
  const all = how === 'continue' ? execution.guest.vcpus : [selected];
  await execution.resume(new Map(all.map((vcpu) => [vcpu, how])));
  return undefined;
}

const ACTIONS: Readonly<Record<string, Resumption | 'stop'>> = {
  c: 'continue',
  C: 'continue',
  s: 'step',
  S: 'step',
  t: 'stop',
};

/** The vCPUs that an action is for. 0 is any of them: as without a thread, all continue and the selected one steps. */
function named(session: Session, action: string, id: string | undefined): readonly GuestVcpu[] {
  const { vcpus } = session.execution.guest;
  if (id === undefined || id === '-1') return vcpus;
  if (number(id) === 0) return ACTIONS[action] === 'step' ? [session.selected] : vcpus;
  const vcpu = vcpuOf(session, id);
  return vcpu ? [vcpu] : [];
}

/** Each vCPU does the first action that names it, or the one without a thread. A guest has no signals to take. */
async function vCont(session: Session, rest: string): Promise<Reply> {
  const { execution } = session;
  const how = new Map<GuestVcpu, Resumption | 'stop'>();
  for (const part of rest.split(';')) {
    const match = /^([cCsSt])[0-9a-f]{0,2}(?::(-1|[0-9a-f]{1,8}))?$/.exec(part);
    if (!match) return ERROR.invalid;
    for (const vcpu of named(session, match[1]!, match[2])) {
      if (!how.has(vcpu)) how.set(vcpu, ACTIONS[match[1]!]!);
    }
  }
  const resumed = [...how].filter((each): each is [GuestVcpu, Resumption] => each[1] !== 'stop');
  if (resumed.length === 0) return ERROR.invalid;
  await execution.resume(new Map(resumed));
  return undefined;
}

async function detach(session: Session): Promise<Reply> {
  await session.execution.leave();
  session.send(OK);
  session.hangUp();
  return undefined;
}

/** A debugger does not end a VM: the same as detaching, but that nothing is answered. */
async function kill(session: Session): Promise<Reply> {
  await session.execution.leave();
  session.hangUp();
  return undefined;
}

/** A hexadecimal number that a place in memory does not need to fit. */
function number(digits: string | undefined): number | undefined {
  return digits !== undefined && /^[0-9a-f]{1,8}$/i.test(digits) ? Number.parseInt(digits, 16) : undefined;
}

function address(digits: string): Gva | undefined {
  return /^[0-9a-f]{1,16}$/i.test(digits) ? BigInt(`0x${digits}`) : undefined;
}

/** `ADDRESS,SIZE`; undefined when it is not, or wraps around. */
function rangeOf(text: string): { readonly gva: Gva; readonly size: number } | undefined {
  const [first = '', second] = text.split(',');
  const gva = address(first);
  const size = number(second?.split(';')[0]);
  if (gva === undefined || size === undefined || gva + BigInt(size) > MAX_GVA + 1n) return undefined;
  return { gva, size };
}
