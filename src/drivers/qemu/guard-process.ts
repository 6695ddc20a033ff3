import { setTimeout as sleep } from 'node:timers/promises';
import type { PhysicalMemory } from '../../machine/memory.ts';
import type { CpuState } from './cpu-state.ts';
import type { GdbClient } from './gdb.ts';
import type { JournalEntry } from './guard.ts';
import { openQmp, type QmpAddress } from './open-qmp.ts';
import { Patches } from './patches.ts';
import { LineSplitter, type QmpConnection, type QmpTransport } from './qmp.ts';
import { StateReader } from './state-reader.ts';
import { closeStub, connectStub, isRunning } from './stub.ts';
import { removeWorkspace, Workspace } from './workspace.ts';

/*
 * The guard of one machine, see guard.ts. Its standard input is the journal; argv[2] is the host's workspace.
 */

/** QEMU notices within milliseconds that its client is gone; a busy host may take longer. */
const ATTEMPTS = 50;
const ATTEMPT_DELAY_MS = 20;
/** An attempt at the monitor takes longer when others use it. */
const PATIENCE_MS = 60_000;
/** How long the guest waits for the monitor, without which less is known of its vCPUs. */
const MONITOR_MS = 20_000;

type Attachment = Extract<JournalEntry, { kind: 'attach' }>;

let attachment: Attachment | undefined;
let running = false;
const patches = new Patches();
const handlers = new Set<bigint>();

function read(entry: JournalEntry): void {
  switch (entry.kind) {
    case 'attach':
      attachment = entry;
      running = entry.running;
      break;
    case 'running':
      running = entry.running;
      break;
    case 'patch':
      if (entry.original === undefined) patches.delete(entry.gpa);
      else patches.add(entry.gpa, entry.original);
      break;
    case 'handler':
      handlers.add(BigInt(`0x${entry.gva}`));
      break;
    case 'detach':
      attachment = undefined;
      patches.clear();
      handlers.clear();
  }
}

/** Until QEMU has noticed that the host is gone, its sockets do not answer. */
async function patiently<T>(attempt: () => Promise<T>): Promise<T | undefined> {
  const deadline = Date.now() + PATIENCE_MS;
  for (let left = ATTEMPTS; left > 0 && Date.now() < deadline; left--) {
    try {
      return await attempt();
    } catch {
      await sleep(ATTEMPT_DELAY_MS);
    }
  }
  return undefined;
}

/** Guest memory as the gdbstub shows it. */
function memoryOf(gdb: GdbClient): PhysicalMemory {
  return {
    regions: [],
    read: (gpa, into) => gdb.readPhysical(gpa, into),
    write: (gpa, from) => gdb.writePhysical(gpa, from),
  };
}

/** With every vCPU stopped: guest code as it was, no breakpoint, no unfinished step. */
async function undo(gdb: GdbClient, qmp: QmpConnection | undefined, of: Attachment): Promise<void> {
  const workspace = new Workspace(undefined);
  let states: Promise<CpuState[]> | undefined;
  const readStates = () => {
    if (!qmp) throw new Error('no monitor');
    return new StateReader(qmp, workspace, of.vcpus, of.tcg).read(gdb);
  };
  const vcpus = Array.from({ length: of.vcpus }, (_, index) => ({
    index,
    gdb,
    async state() {
      states ??= readStates();
      return (await states)[index]!;
    },
    changed() {},
  }));
  try {
    await patches.restore(memoryOf(gdb), vcpus, handlers);
  } finally {
    workspace.remove();
  }
  if (running) for (const { index } of vcpus) await gdb.forgetStep(index);
}

/** Nobody else is let in; who only reads makes room. */
async function openMonitor(address: QmpAddress): Promise<QmpTransport> {
  const qmp = await openQmp(address, { offer: false });
  try {
    await qmp.claim();
    return qmp;
  } catch (error) {
    await qmp.close();
    throw error;
  }
}

async function recover(of: Attachment): Promise<void> {
  const monitor = patiently(() => openMonitor(of.monitor));
  const inTime = await Promise.race([monitor, sleep(MONITOR_MS, undefined)]);
  const gdb = await patiently(() => connectStub(of.stub));
  if (gdb) {
    // Whatever fails, the guest runs on.
    await undo(gdb, inTime, of).catch(() => {});
    await gdb.detach(running).catch(() => {});
  }
  const qmp = await monitor;
  if (!qmp) return;
  await closeStub(qmp, of.stub);
  if (running && !(await isRunning(qmp))) await qmp.execute('cont');
  await qmp.close();
}

process.title = 'kvmi-guard';
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
const lines = new LineSplitter();
process.stdin.on('data', (chunk: Buffer) => {
  for (const line of lines.push(chunk)) read(JSON.parse(line) as JournalEntry);
});
process.stdin.on('close', async () => {
  if (attachment) await recover(attachment).catch(() => {});
  removeWorkspace(process.argv[2]!);
  process.exit();
});
