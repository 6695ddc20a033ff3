import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KvmiError } from '../../error.ts';
import { Others } from './others.ts';
import type { QmpConnection, QmpEvent } from './qmp.ts';

/** As many flushes as the rules of the node tell apart, and what QEMU prints for each. */
const TEXTS = [
  ...['Permission denied', 'No space left on device', 'File exists', 'Not a directory'],
  ...['Is a directory', 'File too large', 'Read-only file system', 'Broken pipe'],
];

/** A monitor of which the test says how often QEMU was told to stop. */
class Monitor implements QmpConnection {
  readonly where = 'here';
  stops = 0;
  running = true;
  /** Nothing is answered while it is false. */
  answers = true;
  /** Called with each command, after its answer is known and before it is told. */
  answering: (command: string) => void = () => {};
  /** How long an answer takes. */
  slowness = 0;
  /** The run state, when it has another name than that. */
  status = '';
  refuses = false;
  readonly #listeners: ((event: QmpEvent) => void)[] = [];

  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    if (!this.answers) return new Promise(() => {});
    if (this.slowness > 0) await sleep(this.slowness);
    if (command === 'query-status') {
      const answer = { running: this.running, status: this.status };
      this.answering(command);
      return answer;
    }
    if (command !== 'blockdev-add' || args.driver !== 'qcow2') return {};
    const text = TEXTS[Math.min(this.stops, TEXTS.length) - 1] ?? 'Image is not in qcow2 format';
    this.stops = 0;
    throw new KvmiError('E_QMP_COMMAND', `refused: ${text}`);
  }

  event(name: string, data: Record<string, unknown> = {}): void {
    for (const listener of this.#listeners) listener({ name, data });
  }

  /** A snapshot, or a migration until it has stopped the VM. */
  copy(): void {
    this.event('MIGRATION', { status: 'setup' });
    this.stops++;
  }

  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.push(listener);
    return () => {};
  }

  hmp(): Promise<string> {
    return Promise.resolve('');
  }

  isServer(): boolean {
    return true;
  }

  onClosed(): void {}
  close(): void {}
}

describe('what others want of the run state', () => {
  async function begin({ ran = true, monitor = new Monitor() } = {}) {
    const changes: boolean[] = [];
    let resumed = 0;
    const others = new Others(monitor, {
      resumed: () => resumed++,
      changed: (paused) => changes.push(paused),
      refuses: () => monitor.refuses,
    });
    await others.begin(ran);
    return { monitor, others, changes, resumed: () => resumed };
  }

  test('stops that the gdbstub reports, or that are expected, are nobody else’s', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 3;
    others.expectStop();
    assert.equal(await others.mayRun(2), true);
    monitor.stops = 1;
    assert.equal(await others.mayRun(3), true);
  });

  test('one more: the VM may not run, until somebody lets it', async () => {
    const { monitor, others, changes, resumed } = await begin();
    monitor.stops = 2;
    assert.equal(await others.mayRun(1), false);
    monitor.event('RESUME');
    assert.equal(resumed(), 1);
    assert.equal(await others.mayRun(1), true);
    assert.deepEqual(changes, [true, false]);
  });

  test('one between the look and the resume: the VM is to be stopped again', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    assert.equal(await others.mayRun(1), true);
    monitor.stops = 1;
    assert.equal(await others.stoppedBefore(() => 1), true);
    assert.equal(others.paused, true);
  });

  test('no such thing when the guest has stopped since: the next look tells', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    monitor.running = false;
    assert.equal(await others.stoppedBefore(() => 0), false);
    assert.equal(await others.mayRun(1), true);
    monitor.running = true;
    monitor.stops = 1;
    let reported = 0;
    assert.equal(await others.stoppedBefore(() => reported++), false);
  });

  test('a stop before somebody’s cont is over, one after it is not', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    monitor.event('RESUME');
    await others.settle(0);
    assert.equal(await others.mayRun(0), true);
    monitor.stops = 1;
    assert.equal(await others.mayRun(0), false);
  });

  test('more stops than QEMU tells at once: one after them is seen', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 20;
    assert.equal(await others.mayRun(20), true);
    monitor.stops = 1;
    assert.equal(await others.mayRun(20), false);
  });

  test('one among more stops of ours than QEMU tells at once is seen', async () => {
    const { monitor, others } = await begin();
    monitor.stops++;
    for (let i = 0; i < 20; i++) {
      monitor.stops++;
      others.expectStop();
      await sleep(0);
    }
    assert.equal(await others.mayRun(0), false);
  });

  test('several vCPUs at a breakpoint at once', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 2;
    others.stoppedAtOnce(await others.look(), 1, 1);
    assert.equal(await others.mayRun(1), true);
    monitor.stops = 2;
    others.stoppedAtOnce(await others.look(), 1, 1);
    assert.equal(await others.mayRun(1), false);
  });

  test('several at once, and the monitor is late: that is nobody’s wish', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 2;
    monitor.slowness = 2100;
    others.stoppedAtOnce(await others.look(), 1, 1);
    assert.equal(await others.mayRun(1), true);
    monitor.slowness = 0;
    assert.equal(await others.mayRun(1), true);
    monitor.stops = 2;
    assert.equal(await others.mayRun(2), false, 'a stop after that is');
  });

  test('a guest that comes to a breakpoint was let run, also when nobody has told', async () => {
    const { monitor, others, changes } = await begin();
    monitor.stops = 1;
    assert.equal(await others.mayRun(0), false);
    others.ran();
    assert.deepEqual(changes, [true, false]);
    assert.equal(await others.mayRun(0), true);
  });

  test('a RESUME of ours is no cont of others', async () => {
    const { monitor, others, resumed } = await begin();
    others.expectResume();
    monitor.event('RESUME');
    assert.equal(resumed(), 0);
    monitor.event('RESUME');
    assert.equal(resumed(), 1);
  });

  test('what the gdbstub reports as somebody else’s stop is over when the VM runs again already', async () => {
    const { monitor, others } = await begin();
    await others.stopped();
    assert.equal(others.paused, false);
    monitor.running = false;
    await others.stopped();
    assert.equal(others.paused, true);
  });

  test('what others do while kvmi gets ready', async () => {
    const stopped = new Monitor();
    stopped.running = false;
    const one = await begin({ monitor: stopped });
    assert.deepEqual([one.others.paused, one.changes], [true, [true]]);
    const two = await begin({ ran: false });
    assert.deepEqual([two.others.paused, two.changes], [false, [false]]);
    assert.equal(await two.others.mayRun(0), true);
  });

  test('a cont that comes together with the answer that the VM does not run', async () => {
    const monitor = new Monitor();
    monitor.running = false;
    monitor.answering = (command) => {
      if (command !== 'query-status' || monitor.running) return;
      monitor.running = true;
      monitor.event('RESUME');
    };
    const { others } = await begin({ ran: false, monitor });
    assert.equal(others.paused, false);
  });

  test('a stop, and somebody’s cont while it is found out whose the stop was', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    setTimeout(() => monitor.event('RESUME'), 10);
    assert.equal(await others.mayRun(0), true);
    await others.settle(0);
    monitor.stops = 1;
    setTimeout(() => monitor.event('RESUME'), 10);
    assert.equal(await others.stoppedBefore(() => 0), false);
  });

  test('the stop of a snapshot is nobody’s wish, also when it is told of later', async () => {
    const { monitor, others } = await begin();
    monitor.copy();
    monitor.copy();
    assert.equal(await others.mayRun(0), true);
    monitor.stops = 1;
    setTimeout(() => monitor.event('MIGRATION', { status: 'setup' }), 10);
    assert.equal(await others.mayRun(0), true);
    monitor.stops = 1;
    assert.equal(await others.mayRun(0), false, 'the next one is');
  });

  test('a stop is in force whether a snapshot is made before or after it', async () => {
    for (const order of [
      ['stop', 'copy'],
      ['copy', 'stop'],
    ]) {
      const { monitor, others } = await begin();
      for (const what of order) {
        if (what === 'stop') monitor.stops++;
        else monitor.copy();
      }
      assert.equal(await others.mayRun(0), false, order.join());
    }
  });

  test('a migration that comes to nothing, and a snapshot of a VM that ran, excuse no stop', async () => {
    for (const end of ['cancelled', 'failed', 'RESUME']) {
      const { monitor, others } = await begin();
      monitor.event('MIGRATION', { status: 'setup' });
      monitor.event(...((end === 'RESUME' ? ['RESUME'] : ['MIGRATION', { status: end }]) as [string]));
      await others.settle(0);
      monitor.stops = 1;
      assert.equal(await others.mayRun(0), false, end);
    }
  });

  test('a stop that a migration follows is in force: the VM runs elsewhere', async () => {
    const { monitor, others } = await begin();
    monitor.copy();
    monitor.status = 'postmigrate';
    assert.equal(await others.mayRun(0), false);
  });

  test('a snapshot that cannot be loaded stops the VM: that is others’ wish, unless it failed because of us', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    monitor.status = 'restore-vm';
    monitor.refuses = true;
    assert.equal(await others.mayRun(0), true);
    monitor.stops = 1;
    monitor.refuses = false;
    assert.equal(await others.mayRun(0), false);
  });

  test('one that is seen long after the resume is left alone: a cont may have come since', async () => {
    const { monitor, others } = await begin();
    monitor.stops = 1;
    monitor.slowness = 300;
    assert.equal(await others.stoppedBefore(() => 0), false);
    assert.equal(others.paused, false);
  });

  test('a monitor that does not answer does not hold the guest', async () => {
    const { monitor, others } = await begin();
    monitor.answers = false;
    assert.equal(await others.mayRun(0), true);
    assert.equal(await others.stoppedBefore(() => 0), false);
  });
});
