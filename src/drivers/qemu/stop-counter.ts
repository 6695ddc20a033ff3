import { KvmiError } from '../../error.ts';
import type { QmpConnection } from './qmp.ts';

const COUNTED = 'kvmi-stops';
const PARENT = 'kvmi-stops-parent';
const PROBE = 'kvmi-stops-probe';

/** The errors of a read after one, two, … stops, as QEMU prints them with any C library. */
const ERRORS = [
  { errno: 13, text: 'Permission denied' },
  { errno: 28, text: 'No space left on device' },
  { errno: 17, text: 'File exists' },
  { errno: 20, text: 'Not a directory' },
  { errno: 21, text: 'Is a directory' },
  { errno: 27, text: 'File too large' },
  { errno: 30, text: 'Read-only file system' },
  { errno: 32, text: 'Broken pipe' },
] as const;

/**
 * Counts the times that QEMU was told to stop the VM, also when it was stopped already: a `stop` then changes no run
 * state and sends no event.
 *
 * Each of them ends with a flush of all block nodes that have been added by name. One is added that no device uses and
 * that holds nothing; a rule of QEMU's `blkdebug` makes its reads fail with an error that depends on the number of
 * flushes since the last read. The read is that of a header, by adding a further node, which is refused in any case.
 */
export class StopCounter {
  readonly #qmp: QmpConnection;
  #there = false;

  constructor(qmp: QmpConnection) {
    this.#qmp = qmp;
  }

  /** Begins at 0. Without `blkdebug` in this QEMU nothing is ever counted. */
  async add(): Promise<void> {
    this.#there = await this.#tryAdd();
    if (this.#there) return;
    // A killed host may have left one.
    await this.remove();
    this.#there = await this.#tryAdd();
    if (!this.#there) await this.remove();
  }

  /** How often since {@link add} or the last time; eight or more are 8. */
  async take(): Promise<number> {
    if (!this.#there) return 0;
    try {
      await this.#qmp.execute('blockdev-add', {
        driver: 'qcow2',
        'node-name': PROBE,
        'read-only': true,
        file: COUNTED,
      });
    } catch (error) {
      if (isRefusal(error)) return 1 + ERRORS.findIndex(({ text }) => error.message.endsWith(text));
      throw error;
    }
    return 0;
  }

  /** Leaves nothing in QEMU, whoever added it. */
  async remove(): Promise<void> {
    this.#there = false;
    for (const name of [PARENT, COUNTED])
      await this.#qmp.execute('blockdev-del', { 'node-name': name }).catch(() => {});
  }

  async #tryAdd(): Promise<boolean> {
    try {
      await this.#qmp.execute('blockdev-add', counted());
      // A node that belongs to another one is no obstacle to snapshots.
      const parent = { driver: 'raw', 'node-name': PARENT, 'read-only': true, file: COUNTED };
      await this.#qmp.execute('blockdev-add', parent);
      return true;
    } catch (error) {
      if (isRefusal(error)) return false;
      throw error;
    }
  }
}

function counted(): Record<string, unknown> {
  const states = ERRORS.map(({ errno }, i) => ({ errno, state: i + 2 }));
  const next = states.map(({ state }) => ({ event: 'flush_to_os', state: state - 1, new_state: state }));
  const back = states.map(({ state }) => ({ event: 'read_aio', state, new_state: 1 }));
  const failures = states.map(({ state, errno }) => ({ event: 'read_aio', state, iotype: 'read', errno }));
  // The last rule that was met is in force: one about what never happens ends the others.
  const none = { event: 'read_aio', state: 1, iotype: 'discard', errno: 5 };
  return {
    driver: 'raw',
    'node-name': COUNTED,
    file: {
      driver: 'blkdebug',
      image: { driver: 'null-co', size: 1 << 20, 'read-zeroes': true },
      'inject-error': [none, ...failures],
      'set-state': [...next, ...back],
    },
  };
}

function isRefusal(error: unknown): error is KvmiError {
  return error instanceof KvmiError && error.code === 'E_QMP_COMMAND';
}
