import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import type { JournalState } from '../../src/drivers/qemu/guard/journal.ts';
import { lives } from '../../src/system/proc.ts';
import { until } from '../kit/guarded.ts';
import { KVMI } from '../kit/kvmi-process.ts';
import { SYMBOL } from '../kit/libvirt-domain.ts';

/* `kvmi break` as people run it: in a terminal, and under timeout(1). */

const CTRL_C = '\x03';
const BETWEEN_KEYS_MS = 1000;

function whyNotRun(program: string): string | undefined {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error && `${program} is not installed`;
}

/** A VM that is to be as it was, whatever ended kvmi. */
export interface Subject {
  readonly target: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly journal: JournalState | undefined;
  unharmed(when: string, journal: JournalState): Promise<void>;
  /** Lets stand still what kvmi needs to unhook. Answers the function that lets it go on. */
  freeze(): () => void;
  stop(): Promise<unknown> | undefined;
}

/** A program that runs `kvmi break`. */
class Wrapped {
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  output = '';

  /** Waits until the breakpoint was hit. */
  static async start(subject: Subject, words: (command: readonly string[]) => readonly string[]) {
    const command = [process.execPath, KVMI, 'break', subject.target, SYMBOL, '-o', 'jsonl'];
    const wrapped = new Wrapped(words(command), subject.environment);
    await wrapped.says(/rip/);
    return wrapped;
  }

  private constructor([program, ...args]: readonly string[], environment: Readonly<Record<string, string>>) {
    this.child = spawn(program!, args, {
      stdio: 'pipe',
      detached: true,
      env: { ...process.env, ...environment },
    });
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.on('data', (chunk: Buffer) => {
        this.output += chunk.toString('latin1');
      });
    this.child.stdin!.on('error', () => {});
    this.ended = new Promise((resolve) => {
      this.child.once('close', resolve);
    });
  }

  async says(pattern: RegExp): Promise<void> {
    await until(() => pattern.test(this.output), `it does not say ${pattern}: ${this.output}`);
  }

  type(keys: string): void {
    this.child.stdin!.write(keys);
  }

  /** Keys that come too quickly make one signal of two. */
  async typeUntil(keys: string, pattern: RegExp): Promise<void> {
    let typed = 0;
    await until(() => {
      if (pattern.test(this.output)) return true;
      if (Date.now() - typed > BETWEEN_KEYS_MS) {
        typed = Date.now();
        this.type(keys);
      }
      return false;
    }, `it does not say ${pattern}`);
  }
}

/** With a terminal of its own, which it leads. */
function inTerminal(command: readonly string[]): readonly string[] {
  return ['script', '-qec', `exec ${command.map((word) => `'${word}'`).join(' ')}`, '/dev/null'];
}

/** The ways in which a terminal or timeout(1) ends `kvmi break` on a VM. */
export function describeTerminal(
  name: string,
  start: () => Promise<Subject>,
  skip: string | undefined,
): void {
  const why = skip ?? whyNotRun('script') ?? whyNotRun('timeout') ?? false;
  describe(`kvmi break on ${name}`, { skip: why }, () => {
    let subject: Subject;

    before(async () => {
      subject = await start();
    });
    after(() => subject?.stop());

    /** Ends it in some way; answers how. */
    async function ends(
      words: (command: readonly string[]) => readonly string[],
      end: (command: Wrapped) => Promise<void>,
      when: string,
    ): Promise<{ readonly code: number | null; readonly output: string }> {
      const command = await Wrapped.start(subject, words);
      const journal = subject.journal!;
      await end(command);
      const code = await command.ended;
      await until(() => !lives(journal.host), `${when}: kvmi runs on`);
      await subject.unharmed(when, journal);
      return { code, output: command.output };
    }

    test('Ctrl-C in a terminal', async () => {
      const { code, output } = await ends(inTerminal, async (command) => command.type(CTRL_C), 'Ctrl-C');
      assert.equal(code, EXIT.interrupted.code, output);
      assert.match(output, /the\s+probe\s+is\s+removed/);
    });

    test('Ctrl-C in a terminal, again and again', async () => {
      const often = async (command: Wrapped) => {
        const thaw = subject.freeze();
        try {
          await command.typeUntil(CTRL_C, /still\s+letting\s+go\s+of/);
          command.type(CTRL_C);
          await command.ended;
        } finally {
          thaw();
        }
      };
      const { code, output } = await ends(inTerminal, often, 'Ctrl-C three times');
      assert.equal(code, EXIT.interrupted.code, output);
    });

    test('a terminal that is closed', async () => {
      await ends(
        inTerminal,
        async (command) => void command.child.kill('SIGKILL'),
        'the terminal was closed',
      );
    });

    test('timeout', async () => {
      // What it does when the time is over.
      const over = async (command: Wrapped) => void command.child.kill('SIGALRM');
      const { output } = await ends((command) => ['timeout', '600', ...command], over, 'timeout');
      assert.match(output, /the\s+probe\s+is\s+removed/);
    });

    test('timeout -s KILL', async () => {
      const over = async (command: Wrapped) => void command.child.kill('SIGALRM');
      await ends((command) => ['timeout', '-s', 'KILL', '600', ...command], over, 'timeout -s KILL');
    });
  });
}
