import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { ProcessIdentity } from '../../src/system/proc.ts';
import { Child } from './child.ts';
import type { Need, Subject } from './subject.ts';

const DIST = join(import.meta.dirname, '..', '..');
const KVMI = join(DIST, '..', 'bin', 'kvmi');

/** A host side that has hooked a guest, with what belongs to it. */
export interface Host {
  readonly process: ProcessIdentity;
  /** Undefined where the tool is in the host side's process. */
  readonly tool: ProcessIdentity | undefined;
  readonly stderr: string;
  /** Ends it as its user does. False when it does not end. */
  end(): Promise<boolean>;
}

export interface HostKind {
  readonly name: string;
  readonly weight: number;
  readonly needs?: Need;
  /** Resolves when something is armed. */
  start(subject: Subject, environment: Readonly<Record<string, string>>): Promise<Host>;
}

export const HOSTS: readonly HostKind[] = [
  {
    name: 'kvmi break',
    weight: 4,
    start: (subject, environment) =>
      whole([KVMI, 'break', subject.target, subject.symbol, '-o', 'jsonl'], /rip/, 'SIGINT', environment),
  },
  {
    name: 'int3',
    weight: 4,
    needs: 'direct',
    start: ({ direct }, environment) => {
      const script = join(DIST, 'test', 'qemu', 'victim.js');
      return whole([script, direct!.qmp, String(direct!.gpa)], /armed/, 'SIGKILL', environment);
    },
  },
  {
    name: 'kvmi hook, int3',
    weight: 4,
    needs: 'tool',
    start: (subject, environment) =>
      hooked(subject, join(DIST, 'test', 'end-to-end', 'tool-process.js'), environment),
  },
  {
    name: 'kvmi hook, CR and MSR',
    weight: 2,
    needs: 'tool',
    start: (subject, environment) => hooked(subject, join(DIST, 'test', 'soak', 'tool.js'), environment),
  },
];

async function whole(
  args: readonly string[],
  ready: RegExp,
  signal: NodeJS.Signals,
  environment: Readonly<Record<string, string>>,
): Promise<Host> {
  const child = new Child(args, environment);
  try {
    await child.said(ready);
  } catch (error) {
    await child.end('SIGKILL');
    throw error;
  }
  return {
    process: child.identity,
    tool: undefined,
    get stderr() {
      return child.stderr;
    },
    end: () => child.end(signal),
  };
}

/** A tool behind a socket, which says "listening" and, when something is armed, "armed". */
async function hooked(
  { direct, target, directory }: Subject,
  script: string,
  environment: Readonly<Record<string, string>>,
): Promise<Host> {
  const address = `unix:${join(directory, `tool-${randomBytes(4).toString('hex')}`)}`;
  const tool = new Child([script, address, `0x${direct!.gva.toString(16)}`], environment);
  try {
    await tool.said(/listening/);
    const host = new Child([KVMI, 'hook', target, '--tool', address], environment);
    const end = async (): Promise<boolean> => {
      const ended = await host.end('SIGINT');
      await tool.end('SIGKILL');
      return ended;
    };
    try {
      await tool.said(/armed/);
    } catch (error) {
      await end();
      throw new Error(`${error instanceof Error ? error.message : error}${host.stderr}`);
    }
    return {
      process: host.identity,
      tool: tool.identity,
      get stderr() {
        return `${host.stderr}${tool.stderr}`;
      },
      end,
    };
  } catch (error) {
    await tool.end('SIGKILL');
    throw error;
  }
}
