import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type JournalState, journals } from '../../src/drivers/qemu/guard/journal.ts';
import { identityOf, lives } from '../../src/system/proc.ts';
import type { KernelText } from './kernel-text.ts';
import type { LinuxGuest } from './linux-guest.ts';

/* What has to be so again after a host side of a QEMU machine was killed. */

/** Far more than anything takes, as the machine may be busy. */
const PATIENCE_MS = 20_000;
const VICTIM = join(import.meta.dirname, '..', 'qemu', 'victim.js');

export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  patience = PATIENCE_MS,
): Promise<void> {
  for (const deadline = Date.now() + patience; !(await condition()); ) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** The children of a process that are guards, from the moment on at which they are started. */
export function guardsOf(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number);
    return children.filter((child) => /guard/.test(readFileSync(`/proc/${child}/cmdline`, 'utf8')));
  } catch {
    return [];
  }
}

/** The journal of what is armed in the QEMU with that pid. */
export function journalOf(pid: number): JournalState | undefined {
  return [...journals().values()].find(({ vm }) => vm.pid === pid);
}

/** A host side that keeps an int3 at `gpa`, to be killed. */
export class Victim {
  readonly child: ChildProcess;
  #journal: JournalState | undefined;

  constructor(qmp: string, gpa: number) {
    this.child = spawn(process.execPath, [VICTIM, qmp, String(gpa)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
  }

  get pid(): number {
    return this.child.pid!;
  }

  async armed(qemu: number): Promise<JournalState> {
    await once(this.child.stdout!, 'data');
    this.#journal = journalOf(qemu);
    assert.ok(this.#journal, 'what is armed is in a journal');
    return this.#journal;
  }

  async kill(): Promise<void> {
    const exited = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exited;
  }
}

/** Kills a host side and its guard, neither of which sees the other one's end. */
export async function killBoth(host: { readonly pid: number; kill(): Promise<unknown> }): Promise<void> {
  const guards = guardsOf(host.pid);
  assert.equal(guards.length, 1, 'it has a guard');
  for (const pid of [host.pid, ...guards]) process.kill(pid, 'SIGSTOP');
  for (const pid of guards) process.kill(pid, 'SIGKILL');
  await host.kill();
}

/** No stub, no process, no file. */
export async function nothingLeft(
  vm: LinuxGuest,
  journal: JournalState | undefined,
  when = '',
): Promise<void> {
  await until(async () => {
    const chardevs = (await vm.monitor.execute('query-chardev')) as { label: string }[];
    return !chardevs.some(({ label }) => label === 'gdb');
  }, `${when}: a gdbstub is left`);
  await until(() => journalOf(vm.pid) === undefined, `${when}: a journal is left`);
  if (!journal) return;
  await until(() => !lives(journal.guard), `${when}: a guard is left`);
  await until(() => !existsSync(journal.workspace), `${when}: ${journal.workspace} is left`);
}

/** The guest runs, and its kernel is what it was. */
export async function unharmed(vm: LinuxGuest, text: KernelText, when = ''): Promise<void> {
  await vm.nextTicks(2, PATIENCE_MS).catch(async () => {
    const said = vm.log.slice(-40).join('\n');
    const state = JSON.stringify(await vm.monitor.execute('query-status'));
    assert.fail(`${when}: the guest's clock stands still (${state}); its kernel said: ${said}`);
  });
  assert.deepEqual(await text.changes(vm), [], `${when}: kernel text is as before`);
}

export async function runState(vm: LinuxGuest): Promise<string> {
  return ((await vm.monitor.execute('query-status')) as { status: string }).status;
}

/** `kill` ends a host side in a VM that somebody else has paused: it stays paused, and runs on when it is let. */
export async function killedWhilePaused(
  vm: LinuxGuest,
  text: KernelText,
  journal: JournalState | undefined,
  kill: () => unknown,
): Promise<void> {
  await until(async () => {
    await vm.monitor.execute('stop');
    return journalOf(vm.pid)?.running === false;
  }, 'the host side sees that the VM was paused');
  await kill();
  await nothingLeft(vm, journal);
  assert.equal(await runState(vm), 'paused');
  await vm.monitor.execute('cont');
  await unharmed(vm, text);
  assert.equal(await runState(vm), 'running');
}

export function processLives(pid: number): boolean {
  return identityOf(pid) !== undefined;
}
