import { KvmiError } from '../../error.ts';
import { GdbClient } from './gdb.ts';
import { type QmpConnection, recordOf, recordsOf } from './qmp.ts';
import { isWorkspaceSocket, type Workspace } from './workspace.ts';

/** What is known of a VM's gdbstub before it is used. */
export interface StubPlan {
  /** Where it listens, or will listen. */
  readonly address: { readonly path: string } | { readonly host: string; readonly port: number };
  /** True when it is ours to add and to remove. */
  readonly own: boolean;
}

/** The character device of the gdbstub that a VM has, as QEMU describes it; undefined when it has none. */
export async function chardevOf(qmp: QmpConnection): Promise<string | undefined> {
  const chardevs = recordsOf(await qmp.execute('query-chardev'), 'the list of character devices');
  const existing = chardevs.find(({ label }) => label === 'gdb');
  return existing && String(existing.filename);
}

/**
 * The gdbstub that a VM has, if any, as its character device is described. E_BUSY when a debugger has it.
 *
 * A stub that is in use must never be connected to: QEMU would accept the waiting connection as soon as the debugger
 * detaches, and stop the VM for it.
 */
export async function findFreeStub(qmp: QmpConnection): Promise<string | undefined> {
  const filename = await chardevOf(qmp);
  if (filename === undefined) return undefined;
  if (filename.startsWith('disconnected:')) return filename.slice('disconnected:'.length);
  throw new KvmiError('E_BUSY', `a debugger is attached to the gdbstub of QEMU at ${qmp.where}`, {
    hint: 'A VM has one gdbstub with one client. Detach the debugger that uses it.',
    data: { where: qmp.where, chardev: filename },
  });
}

/**
 * Decides which gdbstub to use. A VM has one: when it is there and free, it is used and left as it was; otherwise
 * one is added in `workspace`, which replaces one that a killed host left.
 */
export async function planStub(qmp: QmpConnection, workspace: Workspace): Promise<StubPlan> {
  const existing = await findFreeStub(qmp);
  const address = existing === undefined ? undefined : parseChardev(existing);
  if (address !== undefined && !isOurs(address)) return { address, own: false };
  return { address: { path: workspace.socket }, own: true };
}

function isOurs(address: StubPlan['address']): boolean {
  return 'path' in address && isWorkspaceSocket(address.path);
}

function parseChardev(filename: string): StubPlan['address'] | undefined {
  const unix = /^unix:([^,]+)/.exec(filename);
  if (unix) return { path: unix[1]! };
  const tcp = /^tcp:([^,]*):(\d+)/.exec(filename);
  if (!tcp) return undefined;
  const host = tcp[1]!.replace(/^\[(.*)\]$/, '$1');
  return { host: host === '0.0.0.0' || host === '' ? '127.0.0.1' : host, port: Number(tcp[2]) };
}

/** True while the VM runs; false when it is paused, waits for an incoming migration, has shut down, … */
export async function isRunning(qmp: QmpConnection): Promise<boolean> {
  return recordOf(await qmp.execute('query-status'), 'the status').running === true;
}

/** How QEMU calls the state that the VM is in: `running`, `paused`, `debug`, … */
export async function statusOf(qmp: QmpConnection): Promise<string> {
  return String(recordOf(await qmp.execute('query-status'), 'the status').status);
}

/** Whether the VM goes on in another process, or is about to: it must not be let run in this one. */
export async function hasLeft(qmp: QmpConnection): Promise<boolean> {
  return ['finish-migrate', 'postmigrate'].includes(await statusOf(qmp));
}

/** Adds the stub if it is ours. Nothing happens to the VM until somebody connects to it. */
export async function addStub(qmp: QmpConnection, plan: StubPlan, workspace: Workspace): Promise<void> {
  const { address } = plan;
  if (plan.own && 'path' in address) {
    workspace.create();
    // QEMU adds a stub before it removes the one that it has, and refuses two.
    if ((await findFreeStub(qmp)) !== undefined) await closeStub(qmp, plan);
    const printed = await qmp.hmp(`gdbserver unix:${address.path},server=on,wait=off`);
    if (!/Waiting for gdb connection/.test(printed)) {
      throw new KvmiError('E_GDB_ADD', `QEMU at ${qmp.where} could not add a gdbstub: ${printed.trim()}`, {
        hint: `QEMU's user must be able to create a socket in ${address.path}.`,
      });
    }
  }
}

/**
 * Connects to a stub that is there: from then on the VM is stopped. E_GDB_CONNECT when it is not that of the VM behind `qmp`;
 * without one it is the caller who looks.
 */
export function connectStub({ address, own }: StubPlan, qmp?: QmpConnection): Promise<GdbClient> {
  const where = 'path' in address ? address.path : `${address.host}:${address.port}`;
  // QEMU's user may have put the socket of another VM in place of the one that was asked for.
  return GdbClient.connect(address, where, own && qmp ? (pid) => qmp.isServer(pid) : undefined);
}

/** Removes a stub that is ours. Never throws; false when it is left, an unused socket. */
export async function closeStub(qmp: QmpConnection, plan: StubPlan): Promise<boolean> {
  if (!plan.own) return true;
  try {
    await qmp.hmp('gdbserver none');
    return true;
  } catch (error) {
    return error instanceof KvmiError && error.code === 'E_QMP_CLOSED';
  }
}
