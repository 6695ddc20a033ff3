import { lstatSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { recordsOf } from '../../src/drivers/qemu/qmp.ts';
import { isWorkspace } from '../../src/drivers/qemu/workspace.ts';
import { commandLine, processes, readText } from '../../src/system/proc.ts';
import { runtimeDirectory } from '../../src/system/runtime-directory.ts';
import { MARK, PATIENCE_MS } from './child.ts';
import { type Fault, fault } from './faults.ts';
import type { Subject } from './subject.ts';

const WORKSPACES = '/dev/shm';

/** The workspaces that there are: others may use kvmi on this host, too. */
export function workspaces(): readonly string[] {
  return readdirSync(WORKSPACES)
    .filter((name) => isWorkspace(WORKSPACES, name))
    .map((name) => join(WORKSPACES, name));
}

/** What is left of a round after some time: there should be nothing. `before`: workspaces of others. */
export async function leftOver(
  subject: Subject,
  mark: string,
  before: ReadonlySet<string>,
): Promise<Fault[]> {
  const made = workspaces().filter((path) => !before.has(path));
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(20)) {
    const left = [...(await stubs(subject)), ...marked(mark), ...files(subject), ...usedByNobody(made)];
    if (left.length === 0 || Date.now() > deadline) return left;
  }
}

async function stubs({ monitor }: Subject): Promise<Fault[]> {
  const devices = recordsOf(await monitor.execute('query-chardev'), 'the list of character devices');
  return devices
    .filter(({ label }) => label === 'gdb')
    .map(({ filename }) => fault('stubs', `a gdbstub is left: ${filename}`));
}

function marked(mark: string): Fault[] {
  return processes()
    .filter((pid) => readText(`/proc/${pid}/environ`)?.split('\0').includes(`${MARK}=${mark}`))
    .map((pid) => fault('processes', `process ${pid} is left: ${commandLine(pid).join(' ')}`));
}

function files({ fileNames }: Subject): Fault[] {
  const directory = runtimeDirectory()!;
  return readdirSync(directory)
    .filter((name) => fileNames.some((begin) => name.startsWith(begin)))
    .map((name) => {
      const path = join(directory, name);
      const socket = lstatSync(path, { throwIfNoEntry: false })?.isSocket();
      return fault(socket ? 'sockets' : 'files', `${path} is left`);
    });
}

/** A guard names its workspace. What is in others' hands is not of this round. */
function usedByNobody(paths: readonly string[]): Fault[] {
  const there = workspaces().filter((path) => paths.includes(path));
  if (there.length === 0) return [];
  const used = new Set(processes().flatMap(commandLine));
  return there.filter((path) => !used.has(path)).map((path) => fault('files', `${path} is left`));
}
