import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { BARE, BareGuest } from '../../test/kit/bare-guest.ts';
import { codeOf } from '../../test/kit/hooked.ts';
import { withProbes } from '../../test/kit/with-probes.ts';
import { deferred } from '../awaitable.ts';
import { KvmiError } from '../error.ts';
import { type IntrospectOptions, introspect } from '../introspect.ts';
import type { MachineProbes } from '../machine/index.ts';
import type { Guest, ProbeHit } from './index.ts';

/* The embedded machine: a program that calls a function so many times, which counts its calls in memory. */

const CALLS = 40;
const FUNCTION = BigInt(BARE.code + 0x100);
/** Behind the instruction of the function that counts. */
const RETURN = FUNCTION + 8n;
const INT3 = BigInt(BARE.code + 0x200);
/** The program waits here until this byte is set: a vCPU answers only while it runs. */
const GO = BARE.data + 0x100;
const WAIT = `80 3c 25 ${hex32(GO)} 00 74 f6`; // cmp byte [GO], 0; je
const START = 10;
const PROGRAM = `${WAIT}
  b9 ${hex32(CALLS)}              # mov ecx, CALLS
  e8 ${hex32(0x100 - START - 10)}         # call FUNCTION
  ff c9                           # dec ecx
  75 f7                           # jnz
  f4                              # hlt
`;
/** lock inc dword [data]; ret */
const COUNT = `f0 ff 04 25 ${hex32(BARE.data)} c3`;

function hex32(value: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes.toString('hex');
}

interface Rig {
  readonly bare: BareGuest;
  readonly guest: Guest;
  readonly errors: Error[];
  /** How often the function counted. */
  count(): number;
  code(): Uint8Array;
  /** Lets the program go. */
  go(): void;
  /** Lets the program go, until every vCPU has halted. */
  finish(): Promise<void>;
}

interface RigOptions extends Pick<IntrospectOptions, 'symbols'> {
  readonly vcpus?: number;
  readonly program?: string;
  /** In the place of the machine's own probes. */
  readonly probes?: (own: MachineProbes) => MachineProbes | undefined;
}

async function withRig(options: RigOptions, body: (rig: Rig) => Promise<void>): Promise<void> {
  const { vcpus = 1, program = PROGRAM, probes, symbols } = options;
  const bare = new BareGuest(program, { vcpus });
  const { machine } = bare;
  bare.write(Number(FUNCTION), COUNT);
  for (const vcpu of machine.vcpus) vcpu.started = true;
  const errors: Error[] = [];
  const guest = await introspect(probes ? withProbes(machine, probes(machine.probes)) : machine, {
    onError: (error) => errors.push(error),
    ...(symbols && { symbols }),
  });
  const go = (): void => bare.write(GO, '01');
  machine.start();
  try {
    await body({
      bare,
      guest,
      errors,
      count: () => machine.memory.data.getUint32(BARE.data, true),
      code: () => machine.memory.bytes.slice(Number(FUNCTION), Number(FUNCTION) + 16),
      go,
      async finish() {
        go();
        for (const deadline = Date.now() + 60_000; !machine.vcpus.every(({ cpu }) => cpu.halted); ) {
          assert.ok(Date.now() < deadline, 'the program ends');
          await turn();
        }
      },
    });
  } finally {
    await guest.detach();
    await machine.close();
  }
}

/** Only so many at once. */
const only = (count: number) => (own: MachineProbes) => {
  let left = count;
  return {
    kind: own.kind,
    count,
    set(address: bigint, hit: Parameters<MachineProbes['set']>[1]) {
      if (left === 0) throw new KvmiError('E_NO_MEMORY', `all ${count} are used`);
      left--;
      return own.set(address, hit);
    },
  };
};

const kinds = [
  { kind: 'embedded', options: {} },
  { kind: 'int3', options: { probes: () => undefined } },
] as const;

for (const { kind, options } of kinds) {
  describe(`probes of a guest, by ${kind}`, () => {
    test('every call on two vCPUs is seen, in front of the instruction', () =>
      withRig({ ...options, vcpus: 2 }, async ({ guest, finish, count }) => {
        const seen: bigint[][] = [[], []];
        const probe = await guest.probes.at(FUNCTION, ({ vcpu, registers, address }) => {
          assert.deepEqual([registers.rip, address], [FUNCTION, FUNCTION]);
          seen[vcpu.index]!.push(registers.rcx);
        });
        assert.equal(probe.kind, kind);
        await finish();
        const down = Array.from({ length: CALLS }, (_, i) => BigInt(CALLS - i));
        assert.deepEqual(seen, [down, down]);
        assert.deepEqual([probe.hits, count()], [2 * CALLS, 2 * CALLS]);
      }));

    test('removed, it is not called any more and the code is as before', () =>
      withRig(options, async ({ guest, finish, count, code }) => {
        const before = code();
        let removed: Promise<void> | undefined;
        const probe = await guest.probes.at(FUNCTION, ({ probe: self }) => {
          if (self.hits === 7) removed = self.remove();
        });
        await finish();
        await removed;
        assert.deepEqual([probe.hits, count()], [7, CALLS]);
        assert.deepEqual(code(), before);
      }));

    test('several at one address are called in turn, each until it is removed', () =>
      withRig(options, async ({ guest, finish }) => {
        const calls: string[] = [];
        const first = await guest.probes.at(FUNCTION, () => void calls.push('a'));
        const second = await guest.probes.at(FUNCTION, async ({ probe }) => {
          calls.push('b');
          if (probe.hits === 2) await first.remove();
        });
        await finish();
        assert.deepEqual(calls.slice(0, 6), ['a', 'b', 'a', 'b', 'b', 'b']);
        assert.deepEqual([first.hits, second.hits], [2, CALLS]);
      }));

    test('one that an earlier handler of the same hit has removed is not called', () =>
      withRig(options, async ({ guest, finish }) => {
        const first = await guest.probes.at(FUNCTION, ({ probe }) => {
          if (probe.hits === 2) void second.remove();
        });
        const second = await guest.probes.at(FUNCTION, () => {});
        await finish();
        assert.deepEqual([first.hits, second.hits], [CALLS, 1]);
      }));

    test('a handler can wait for registers, memory and a translation of its vCPU, and hold it', () =>
      withRig(options, async ({ guest, finish, count }) => {
        const probe = await guest.probes.at(FUNCTION, async ({ vcpu, registers }) => {
          const now = await vcpu.registers();
          assert.deepEqual([now.rip, now.rcx], [registers.rip, registers.rcx]);
          assert.equal(await vcpu.translate(FUNCTION), Number(FUNCTION));
          const held = await guest.pause();
          const calls = Buffer.from(await vcpu.memory.readBytes(BigInt(BARE.data), 4)).readUInt32LE();
          assert.equal(calls, CALLS - Number(registers.rcx));
          held.resume();
        });
        await finish();
        assert.deepEqual([probe.hits, count()], [CALLS, CALLS]);
      }));

    test('a vCPU that is held goes on when it is let go, not before', () =>
      withRig(options, async ({ guest, go, finish, count }) => {
        const hit = deferred<ProbeHit>();
        const probe = await guest.probes.at(FUNCTION, (first) => hit.resolve(first));
        go();
        const { vcpu } = await hit.promise;
        const held = await vcpu.pause();
        const { rip } = await vcpu.registers();
        const calls = count();
        for (let i = 0; i < 50; i++) await turn();
        assert.deepEqual([(await vcpu.registers()).rip, count()], [rip, calls]);
        held.resume();
        await finish();
        assert.equal(probe.hits, CALLS);
      }));

    test('registers that are assigned are set', () =>
      withRig(options, async ({ guest, finish, count }) => {
        const probe = await guest.probes.at(FUNCTION, ({ registers }) => {
          if (registers.rcx === BigInt(CALLS - 1)) registers.rcx = 3n;
        });
        await finish();
        assert.deepEqual([probe.hits, count()], [4, 4], 'two rounds as they were, and then the last two');
      }));

    test('rip that is assigned is where the vCPU goes on, without the instruction', () =>
      withRig(options, async ({ guest, finish, count }) => {
        const probe = await guest.probes.at(FUNCTION, async ({ registers }) => {
          await turn();
          registers.rip = RETURN;
        });
        await finish();
        assert.deepEqual([probe.hits, count()], [CALLS, 0]);
      }));

    test('after retry() the vCPU comes once more', () =>
      withRig(options, async ({ guest, finish, count }) => {
        const probe = await guest.probes.at(FUNCTION, (hit) => {
          if (hit.probe.hits % 2 === 1) hit.retry();
        });
        await finish();
        assert.deepEqual([probe.hits, count()], [2 * CALLS, CALLS]);
      }));

    test('detached in the middle of a hit, the guest runs on and the handler is not called again', () =>
      withRig(options, async ({ guest, go, finish, count }) => {
        const never = deferred<void>();
        const hit = deferred<void>();
        const probe = await guest.probes.at(FUNCTION, () => {
          hit.resolve();
          return never.promise;
        });
        go();
        await hit.promise;
        await guest.detach();
        await finish();
        assert.deepEqual([probe.hits, count()], [1, CALLS]);
        await probe.remove();
      }));

    test('a handler that fails is reported, and the guest goes on', () =>
      withRig(options, async ({ guest, finish, count, errors }) => {
        await guest.probes.at(FUNCTION, ({ registers }) => {
          if (registers.rcx === 5n) throw new Error('no');
        });
        await finish();
        assert.equal(count(), CALLS);
        assert.deepEqual(
          errors.map((error) => (error as KvmiError).code),
          ['E_HANDLER'],
        );
      }));

    test('the machine ends first: removing says that it was not done', () =>
      withRig(options, async ({ bare, guest }) => {
        const probe = await guest.probes.at(FUNCTION, () => {});
        await bare.machine.kill();
        await guest.closed;
        assert.equal(await codeOf(probe.remove()), 'E_CLOSED');
      }));

    test('in front of an int3 of the guest, which stays its own', () =>
      withRig(
        { ...options, program: `${WAIT} e9 ${hex32(0x200 - START - 5)}` },
        async ({ bare, guest, finish }) => {
          bare.write(Number(INT3), 'cc f4');
          const probe = await guest.probes.at(INT3, () => {});
          await finish();
          assert.deepEqual([probe.hits, bare.vector], [1, 3]);
        },
      ));
  });
}

test('by its own means the machine leaves memory alone, and the page needs not be there yet', () =>
  withRig({}, async ({ bare, guest, finish, code }) => {
    const before = code();
    bare.page(Number(FUNCTION), 0n, 1n);
    assert.equal(await codeOf(guest.breakpoints.set(FUNCTION, () => {})), 'E_NOT_MAPPED');
    const probe = await guest.probes.at(FUNCTION, () => {});
    bare.page(Number(FUNCTION), 1n);
    await finish();
    assert.equal(probe.hits, CALLS);
    assert.deepEqual(code(), before, 'while it is set');
  }));

test('when the means of the machine are used up it is an int3, and says so, if that is allowed', () =>
  withRig({ probes: only(1) }, async ({ guest, finish, code }) => {
    const before = code();
    const own = await guest.probes.at(RETURN, () => {});
    assert.equal(await codeOf(guest.probes.at(FUNCTION, () => {}, { int3: false })), 'E_NO_MEMORY');
    assert.deepEqual(code(), before);
    const other = await guest.probes.at(FUNCTION, () => {});
    assert.deepEqual([own.kind, other.kind], ['embedded', 'int3']);
    assert.equal(await codeOf(guest.probes.at(FUNCTION, () => {}, { int3: false })), 'E_UNSUPPORTED');
    await finish();
    assert.deepEqual([own.hits, other.hits], [CALLS, CALLS]);
  }));

test('without means of the machine and without leave for an int3 there is none', () =>
  withRig({ probes: () => undefined }, async ({ guest, code }) => {
    const before = code();
    assert.equal(await codeOf(guest.probes.at(FUNCTION, () => {}, { int3: false })), 'E_UNSUPPORTED');
    assert.deepEqual(code(), before);
  }));

test('a symbol, with and without an offset', () =>
  withRig({ symbols: async (name) => ({ main: BigInt(BARE.code) })[name]! }, async ({ guest, finish }) => {
    const probe = await guest.probes.at('main+0x100', () => {});
    const first = await guest.probes.at(`main+${START}`, () => {});
    assert.deepEqual([probe.address, first.address], [FUNCTION, BigInt(BARE.code + START)]);
    await finish();
    assert.deepEqual([probe.hits, first.hits], [CALLS, 1]);
  }));

test('a symbol that nobody can look up', () =>
  withRig({}, async ({ guest }) => {
    assert.equal(await codeOf(guest.probes.at('main', () => {})), 'E_SYMBOL');
  }));
