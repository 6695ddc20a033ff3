import { existsSync, lstatSync, readdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { recordsOf } from '../../src/drivers/qemu/qmp.ts';
import { isWorkspace } from '../../src/drivers/qemu/workspace.ts';
import { commandLine, processes, readText } from '../../src/system/proc.ts';
import { runtimeDirectory } from '../../src/system/runtime-directory.ts';
import { MARK, PATIENCE_MS } from './child.ts';
import { type Fault, fault } from './faults.ts';
import type { Subject } from './subject.ts';

/** The workspaces that processes of a round use: a guard is told which one. */
export function workspacesOf(mark: string): readonly string[] {
  return marked(mark)
    .flatMap(commandLine)
    .filter((path) => isWorkspace(dirname(path), basename(path)));
}

/** What is left of a round after some time: there should be nothing. */
export async function leftOver(
  subject: Subject,
  mark: string,
  workspaces: readonly string[],
): Promise<Fault[]> {
  for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(20)) {
    const left = [
      ...(await stubs(subject)),
      ...marked(mark).map((pid) => fault('processes', `process ${pid}: ${commandLine(pid).join(' ')}`)),
      ...files(subject),
      ...workspaces.filter((path) => existsSync(path)).map((path) => fault('files', path)),
    ];
    if (left.length === 0 || Date.now() > deadline) return left;
  }
}

/** What is left in QEMU: the gdbstub, and the block nodes by which kvmi sees what others do. */
async function stubs({ monitor }: Subject): Promise<Fault[]> {
  const devices = recordsOf(await monitor.execute('query-chardev'), 'the list of character devices');
  const nodes = recordsOf(await monitor.execute('query-named-block-nodes'), 'the list of block nodes');
  return [
    ...devices.filter(({ label }) => label === 'gdb').map(({ filename }) => `a gdbstub: ${filename}`),
    ...nodes.map((node) => `the block node ${node['node-name']}`).filter((name) => name.includes(' kvmi-')),
  ].map((what) => fault('stubs', what));
}

function marked(mark: string): number[] {
  return processes().filter((pid) =>
    readText(`/proc/${pid}/environ`)?.split('\0').includes(`${MARK}=${mark}`),
  );
}

function files({ fileNames }: Subject): Fault[] {
  const directory = runtimeDirectory()!;
  return readdirSync(directory)
    .filter((name) => fileNames.some((begin) => name.startsWith(begin)))
    .map((name) => join(directory, name))
    .map((path) => fault(lstatSync(path, { throwIfNoEntry: false })?.isSocket() ? 'sockets' : 'files', path));
}
