import assert from 'node:assert/strict';
import { Duplex } from 'node:stream';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { encodePacket, PacketReader } from '../../rsp/packets.ts';
import { GdbLink, type Stopped } from './gdb-link.ts';

/*
 * A stub as QEMU's is between its packets (gdbstub.c, gdb_read_byte): while the guest runs, a byte stops it and is lost;
 * each piece that arrives is taken as a whole, so that others come in between pieces only.
 */
class Stub extends Duplex {
  running = false;
  /** False for a VM that has to be reset first. */
  resumes = true;
  /** What the stops were: `byte` when one of the client's bytes made it. */
  readonly stops: ('byte' | 'others' | 'trap')[] = [];
  readonly #inbox: Buffer[] = [];
  readonly #reader = new PacketReader();

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.#inbox.push(Buffer.from(chunk));
    done();
  }

  override _writev(chunks: { chunk: Buffer }[], done: () => void): void {
    this.#inbox.push(Buffer.concat(chunks.map(({ chunk }) => chunk)));
    done();
  }

  /** Takes the next piece that has arrived. */
  takePiece(): void {
    for (const byte of this.#inbox.shift() ?? []) {
      if (this.running) this.stop('byte', 2);
      else
        for (const incoming of this.#reader.feed(Buffer.of(byte)))
          if (incoming.kind === 'packet') this.#answer(Buffer.from(incoming.data).toString());
    }
  }

  stop(why: 'byte' | 'others' | 'trap', signal: number): void {
    if (!this.running) return;
    this.running = false;
    this.stops.push(why);
    this.#say(`T0${signal}thread:p01.01;`);
  }

  #answer(packet: string): void {
    if (packet === 'c') this.running = this.resumes;
    else if (packet === 'qC') this.#say('QCp01.01');
    else if (packet === '?') this.#say(WHY);
    else this.#say(`answer to ${packet}`);
  }

  #say(text: string): void {
    this.push(encodePacket(text));
  }
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** What `?` is answered: a stop reply, but of another vCPU than all stops. */
const WHY = 'T05thread:p01.02;';

type Step = 'refuse' | 'command' | 'why' | 'two' | 'resume' | 'interrupt' | 'take' | 'cont' | 'stop' | 'trap';
const STEPS = ['command', 'two', 'resume', 'interrupt', 'take', 'cont', 'stop', 'trap'] as const;

describe('packets to the gdbstub while others let the guest run and stop it', () => {
  async function play(steps: readonly Step[]) {
    const stub = new Stub();
    const reported: Stopped[] = [];
    const link = new GdbLink(
      stub,
      'here',
      (stop) => reported.push(stop),
      () => {},
    );
    const answers: Promise<void>[] = [];
    let count = 0;
    const ask = (): void => {
      const command = `command ${count++}`;
      answers.push(link.command(command).then((answer) => assert.equal(answer, `answer to ${command}`)));
    };
    const play: Record<Step, () => void> = {
      refuse: () => {
        stub.resumes = false;
      },
      command: ask,
      why: () => {
        answers.push(link.command('?').then((answer) => assert.equal(answer, WHY)));
      },
      two: () => {
        ask();
        ask();
      },
      resume: () => link.resume('c'),
      interrupt: () => void link.interrupt(),
      take: () => stub.takePiece(),
      cont: () => {
        stub.running = true;
      },
      stop: () => stub.stop('others', 2),
      trap: () => stub.stop('trap', 5),
    };
    for (const step of steps) {
      play[step]();
      await turn();
    }
    // Whatever happened, a last question stops the guest, and all are answered.
    ask();
    const all = Promise.all(answers);
    let answered = false;
    void all.then(() => {
      answered = true;
    });
    for (let turns = 0; !answered && turns < 100; turns++) {
      stub.takePiece();
      await turn();
    }
    assert.ok(answered, 'every command is answered');
    await all;
    assert.ok(!stub.running, 'the guest is stopped');
    assert.ok(!link.running, 'and that is known');
    link.end(new Error('over'));
    return { stub, reported };
  }

  test('every command has its own answer, and the last one finds the guest stopped', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.constantFrom(...STEPS), { maxLength: 30 }), async (steps) => {
        await play(steps);
      }),
      { numRuns: 300 },
    );
  });

  const cases: readonly { readonly steps: readonly Step[]; readonly asked: readonly boolean[] }[] = [
    { steps: ['resume', 'take', 'interrupt', 'take'], asked: [true] },
    { steps: ['resume', 'take', 'stop'], asked: [false] },
    { steps: ['resume', 'take', 'interrupt', 'stop', 'take'], asked: [false] },
    { steps: ['resume', 'take', 'interrupt', 'trap', 'take'], asked: [false] },
    { steps: ['cont', 'command', 'take'], asked: [true] },
    { steps: ['cont', 'why', 'take'], asked: [true] },
    { steps: ['why', 'take'], asked: [] },
    { steps: ['cont', 'trap', 'why', 'take'], asked: [false] },
    { steps: ['cont', 'why', 'trap', 'take'], asked: [false] },
    { steps: ['command', 'cont', 'stop', 'take'], asked: [false] },
    // What is resumed goes on: nothing to be told of.
    { steps: ['cont', 'resume', 'take', 'interrupt', 'take'], asked: [true] },
    { steps: ['cont', 'trap', 'resume', 'take', 'interrupt', 'take'], asked: [false, true] },
    { steps: ['resume', 'cont', 'trap', 'take', 'stop'], asked: [false] },
    { steps: ['cont', 'resume', 'take', 'stop'], asked: [false] },
    { steps: ['cont', 'command', 'take', 'resume', 'take', 'stop'], asked: [true, false] },
    // It did not run: that it is stopped is told all the same.
    { steps: ['refuse', 'resume', 'take', 'interrupt', 'take'], asked: [true] },
  ];
  for (const { steps, asked } of cases) {
    test(`${steps.join(', ')}: asked for ${asked.join(', ')}`, async () => {
      const { reported } = await play(steps);
      assert.deepEqual(
        reported.map((stop) => stop.asked),
        asked,
      );
    });
  }
});
