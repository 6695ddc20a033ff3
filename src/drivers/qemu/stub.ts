import type { Awaitable } from '../../awaitable.ts';
import { KvmiError } from '../../error.ts';
import { GdbClient } from './gdb.ts';
import { type QmpConnection, recordOf, recordsOf } from './qmp.ts';
import { WORKSPACE_PREFIX, type Workspace } from './workspace.ts';

/** What is known of a VM's gdbstub before it is used. */
export interface StubPlan {
  /** Where it listens, or will listen. */
  readonly address: { readonly path: string } | { readonly host: string; readonly port: number };
  /** True when it is ours to add and to remove. */
  readonly own: boolean;
}

/**
 * The gdbstub that a VM has, if any, as its character device is described. E_BUSY when a debugger has it.
 *
 * A stub that is in use must never be connected to: QEMU would accept the waiting connection as soon as the debugger
 * detaches, and stop the VM for it.
 */
export async function findFreeStub(qmp: QmpConnection): Promise<string | undefined> {
  const chardevs = recordsOf(await qmp.execute('query-chardev'), 'the list of character devices');
  const existing = chardevs.find(({ label }) => label === 'gdb');
  if (existing === undefined) return undefined;
  const filename = String(existing.filename);
  if (filename.startsWith('disconnected:')) return filename.slice('disconnected:'.length);
  throw new KvmiError('E_BUSY', `a debugger is attached to the gdbstub of QEMU at ${qmp.where}`, {
    hint: 'A VM has one gdbstub with one client. Detach the debugger that uses it.',
    data: { where: qmp.where, chardev: filename },
  });
}

/**
 * Decides which gdbstub to use. A VM has one: when it is there and free, it is used and left as it was; otherwise
 * one is added in `workspace`, which also replaces one that a killed host left.
 */
export async function planStub(qmp: QmpConnection, workspace: Workspace): Promise<StubPlan> {
  const existing = await findFreeStub(qmp);
  const address = existing === undefined ? undefined : parseChardev(existing);
  const abandoned =
    address !== undefined && 'path' in address && address.path.includes(`/${WORKSPACE_PREFIX}`);
  if (address !== undefined && !abandoned) return { address, own: false };
  return { address: { path: workspace.socket }, own: true };
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

/** Adds the stub if it is ours, and connects: from then on the VM is stopped. */
export async function openStub(qmp: QmpConnection, plan: StubPlan): Promise<GdbClient> {
  const { address } = plan;
  if (plan.own && 'path' in address) {
    const printed = await qmp.hmp(`gdbserver unix:${address.path},server=on,wait=off`);
    if (!/Waiting for gdb connection/.test(printed)) {
      throw new KvmiError('E_GDB_ADD', `QEMU at ${qmp.where} could not add a gdbstub: ${printed.trim()}`, {
        hint: `QEMU's user must be able to create a socket in ${address.path}.`,
      });
    }
  }
  try {
    // QEMU's user may have put the socket of another VM in place of the one that was asked for.
    return await connectStub(plan, plan.own ? (pid) => qmp.isServer(pid) : undefined);
  } catch (error) {
    await closeStub(qmp, plan);
    throw error;
  }
}

/** Connects to a stub that is there. */
export function connectStub(
  { address }: StubPlan,
  isStub?: (pid: number) => Awaitable<boolean>,
): Promise<GdbClient> {
  const where = 'path' in address ? address.path : `${address.host}:${address.port}`;
  return GdbClient.connect(address, where, isStub);
}

/** Removes a stub that is ours. Never throws: what is left at worst is an unused socket. */
export async function closeStub(qmp: QmpConnection, plan: StubPlan): Promise<void> {
  if (plan.own) await qmp.hmp('gdbserver none').catch(() => {});
}
