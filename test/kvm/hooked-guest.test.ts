import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { deferred } from '../../src/awaitable.ts';
import { connectGuest, type Guest } from '../../src/tool/index.ts';
import { type Channel, listen } from '../../src/transport/index.ts';
import { compile, missing, RUN_MAIN, type Started, start, temporaryFolder } from './kit.ts';

/* A tool looks into the guest of a program under kvmi run: test/kvm/guest.c. */

const skip = missing('gcc', 'setpriv');
const PAGE = 4096;
const COUNTER = 0x2010;
const SYSENTER_CS = 0x174;
/** Addresses that slots of the program had for a while, or that it asked for in vain. */
const WITHOUT_MEMORY = [0x20_0000, 0x80_0000, 0x100_0000, 0x51_0000];

/** A program that runs under kvmi, and the tool's view of its guest. */
interface Hooked {
  readonly run: Started;
  readonly guest: Guest;
}

describe('a tool and the guest of a program under kvmi run', { skip: skip ?? false }, () => {
  const folder = temporaryFolder();
  let program: string;
  let hooks = 0;

  before(() => {
    program = compile('guest', folder);
  });

  /** Starts the program under kvmi, which is started by `launcher`. */
  async function hooked(launcher: readonly string[]): Promise<Hooked> {
    const path = join(folder, `tool-${++hooks}.sock`);
    const { promise, resolve } = deferred<Channel>();
    const listener = await listen(`unix:${path}`, resolve);
    const [command, ...args] = [...launcher, process.execPath, RUN_MAIN, '--', program, path];
    const run = start(command!, args);
    await run.printed('ready');
    const hello = { uuid: new Uint8Array(16), startTime: 0, name: 'guest' };
    const guest = await connectGuest(await promise, { hello });
    await listener.close();
    return { run, guest };
  }

  async function counter(guest: Guest): Promise<bigint> {
    return guest.memory.u64(COUNTER);
  }

  async function countsOn(guest: Guest): Promise<void> {
    const from = await counter(guest);
    const deadline = performance.now() + 10_000;
    while ((await counter(guest)) === from) assert.ok(performance.now() < deadline, 'the guest counts on');
  }

  /** The program ends by itself; it checks what its own calls returned. */
  async function end({ run, guest }: Hooked): Promise<string> {
    await guest.detach();
    run.process.stdin!.end();
    const { code, stdout, stderr } = await run.finished;
    assert.equal(code, 0, stdout + stderr);
    return stdout;
  }

  for (const [rights, launcher] of [
    ['with all rights', []],
    ['without BPF', ['setpriv', '--bounding-set=-sys_admin,-bpf,-perfmon']],
  ] as const) {
    it(`reads and writes its memory where the program has put it, ${rights}`, async () => {
      const both = await hooked(launcher);
      const { guest } = both;
      let slots = 0;
      for (const [, gpa, size] of both.run.output().matchAll(/^slot \d+ (\S+) (\S+)/gm)) {
        slots++;
        for (const at of [Number(gpa), Number(gpa) + Number(size) - PAGE]) {
          assert.equal(await guest.memory.u64(at), BigInt(at + 1), `guest memory at 0x${at.toString(16)}`);
        }
      }
      assert.equal(slots, 4);
      for (const at of WITHOUT_MEMORY) {
        await assert.rejects(guest.memory.u64(at), `there is no memory at 0x${at.toString(16)}`);
      }
      await countsOn(guest);
      await end(both);
    });

    it(`stops its vCPU, ${rights}`, async () => {
      const both = await hooked(launcher);
      const { guest } = both;
      const addresses: bigint[] = [];
      await guest.singlestep(guest.vcpus[0]!, ({ registers }) => {
        addresses.push(registers.rip);
        return addresses.length < 6;
      });
      // An instruction that left the guest for its VMM is not always reported.
      const code = [0x1008n, 0x100dn, 0x100fn];
      assert.deepEqual(
        addresses.filter((address) => !code.includes(address)),
        [],
      );
      assert.ok(new Set(addresses).size > 1, `it went on from ${addresses[0]}`);
      await countsOn(guest);
      await end(both);
    });

    it(`lets the program go on when the host side is killed, ${rights}`, async () => {
      const { run, guest } = await hooked(launcher);
      await guest.vcpus[0]!.registers();
      run.process.kill('SIGKILL');
      await guest.closed;
      run.process.stdin!.end();
      const { stdout, stderr } = await run.finished;
      assert.match(stdout, /^UNHOOK: Function not implemented$/m, stderr);
      assert.doesNotMatch(stdout, /expected/, 'what it asks the kernel for is done');
    });
  }

  it("leaves the program's standard descriptors blocking, also after something was armed", async () => {
    const both = await hooked([]);
    const { guest } = both;
    // A trap that a guard process watches over.
    await guest.vcpus[0]!.controlMsr(SYSENTER_CS, true);
    await guest.vcpus[0]!.controlMsr(SYSENTER_CS, false);
    await countsOn(guest);
    const printed = await end(both);
    for (const fd of [0, 1, 2]) assert.match(printed, new RegExp(`descriptor ${fd} is blocking`));
  });
});
