import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { KvmiError } from '../../error.ts';
import { LineSplitter, QMP_TIMEOUT_MS } from './qmp.ts';
import { spawnVirsh, virshError } from './virsh.ts';

/** A command that waits for its answer, or for its turn. */
interface Pending {
  readonly line: string;
  readonly what: string;
  readonly answer: RegExp;
  readonly timeoutMs: number;
  resolve(output: string): void;
  reject(error: Error): void;
}

const ERROR = 'error: ';

/**
 * One virsh that carries out commands, one after the other. Answers and errors come on two streams; behind each command
 * virsh echoes a mark on both, so that nothing is taken for the answer to something else.
 */
export class VirshShell {
  readonly #domain: string;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #pending: Pending[] = [];
  #timer: NodeJS.Timeout | undefined;
  #mark = 0;
  /** Streams on which the mark is still to come. */
  #marksDue = 0;
  #output: string | undefined;
  #errors: string[] = [];
  #ended: Error | undefined;

  constructor(domain: string, options: readonly string[]) {
    this.#domain = domain;
    this.#child = spawnVirsh(options, false);
    this.#lines(this.#child.stdout, '', (line) => {
      if (this.#pending[0]?.answer.test(line)) this.#output = line;
    });
    this.#lines(this.#child.stderr, ERROR, (line) => {
      if (line.startsWith(ERROR)) this.#errors.push(line.slice(ERROR.length));
    });
    this.#child.on('error', (cause) => this.#fail(`virsh does not start: ${cause.message}`));
    // What it has written comes before this.
    this.#child.on('close', () => this.#fail(this.#errors.join('; ') || 'virsh has ended'));
  }

  get ended(): boolean {
    return this.#ended !== undefined;
  }

  /**
   * The line that virsh prints and that fits `answer`. Rejects with what {@link virshError} makes of virsh's words;
   * E_QMP_TIMEOUT, after which the shell is of no use, when it says nothing in time. `what`: for messages.
   */
  run(line: string, what: string, answer: RegExp, timeoutMs = QMP_TIMEOUT_MS): Promise<string> {
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      this.#pending.push({ line, what, answer, timeoutMs, resolve, reject });
      if (this.#pending.length === 1) this.#next();
    });
  }

  close(error: Error = virshError(this.#domain, 'virsh has ended')): void {
    if (this.#ended) return;
    this.#ended = error;
    clearTimeout(this.#timer);
    this.#child.kill('SIGKILL');
    for (const { reject } of this.#pending.splice(0)) reject(error);
  }

  #lines(stream: NodeJS.ReadableStream, prefix: string, onLine: (line: string) => void): void {
    const lines = new LineSplitter();
    stream.on('data', (chunk: Buffer) => {
      try {
        for (const line of lines.push(chunk)) {
          if (isMark(line, `${prefix}kvmi-${this.#mark}`)) this.#marked();
          else onLine(line);
        }
      } catch (error) {
        this.close(error as Error);
      }
    });
  }

  #next(): void {
    const pending = this.#pending[0];
    if (!pending) return;
    this.#timer = setTimeout(() => {
      const text = `libvirt domain ${this.#domain}: virsh did not answer ${pending.what} within ${pending.timeoutMs} ms`;
      this.close(new KvmiError('E_QMP_TIMEOUT', text, { data: { domain: this.#domain } }));
    }, pending.timeoutMs);
    this.#mark++;
    this.#marksDue = 2;
    this.#child.stdin.write(`${pending.line}\necho kvmi-${this.#mark}\necho --err kvmi-${this.#mark}\n`);
  }

  #marked(): void {
    this.#marksDue--;
    if (this.#marksDue > 0) return;
    const pending = this.#pending.shift();
    if (!pending) return;
    clearTimeout(this.#timer);
    const [output, errors] = [this.#output, this.#errors];
    this.#output = undefined;
    this.#errors = [];
    if (output !== undefined) pending.resolve(output);
    else pending.reject(virshError(this.#domain, errors.join('; ') || `no answer to ${pending.what}`));
    this.#next();
  }

  #fail(text: string): void {
    this.close(virshError(this.#domain, text));
  }
}

/** virsh may write its prompt behind what it echoes. */
function isMark(line: string, mark: string): boolean {
  return line === mark || line.startsWith(`${mark}virsh `);
}
