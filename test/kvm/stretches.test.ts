import assert from 'node:assert/strict';
import { join } from 'node:path';
import { afterEach, before, describe, it } from 'node:test';
import { deferred } from '../../src/awaitable.ts';
import { type Channel, listen } from '../../src/transport/index.ts';
import { DIALECTS } from '../../src/wire/index.ts';
import { Peer } from '../kit/peer.ts';
import { compile, missing, RUN_MAIN, type Started, start, temporaryFolder } from './kit.ts';

/* A program under kvmi run that is not always in KVM_RUN, or not for long: test/kvm/stretches.c. */

const skip = missing('gcc');
/** It depends on where the thread is at its process's end. */
const ROUNDS = 5;
const ANSWERED_MS = 20_000;

describe('a vCPU under kvmi run that is mostly outside KVM_RUN', { skip: skip ?? false }, () => {
  const folder = temporaryFolder();
  let program: string;
  let runs = 0;
  let run: Started | undefined;

  before(() => {
    program = compile('stretches', folder);
  });
  afterEach(() => {
    run?.process.kill('SIGKILL');
    run = undefined;
  });

  async function hooked(): Promise<{ run: Started; peer: Peer; obey(command: string): Promise<void> }> {
    const path = join(folder, `tool-${++runs}.sock`);
    const { promise, resolve } = deferred<Channel>();
    const listener = await listen(`unix:${path}`, resolve);
    const started = start(process.execPath, [RUN_MAIN, '--', program, path]);
    run = started;
    await started.printed('ready');
    const peer = new Peer(await promise, DIALECTS.v12);
    await listener.close();
    let commands = 0;
    return {
      run: started,
      peer,
      async obey(command) {
        const text = `done ${command}`;
        commands = started.output().split(text).length;
        started.process.stdin!.write(`${command}\n`);
        for (const deadline = Date.now() + ANSWERED_MS; started.output().split(text).length === commands; ) {
          assert.ok(Date.now() < deadline, `${command} is done`);
          await new Promise((later) => setTimeout(later, 1));
        }
      },
    };
  }

  async function count(vm: Awaited<ReturnType<typeof hooked>>): Promise<number> {
    await vm.obey('count');
    return Number([...vm.run.output().matchAll(/count (\d+)/g)].at(-1)![1]);
  }

  /** Commands to vCPU 0, each of which makes it be traced. */
  const COMMANDS = {
    GET_REGISTERS: (peer: Peer) => peer.command('VCPU_GET_REGISTERS', { nmsrs: 0, msrs_idx: [] }, 0),
    CONTROL_MSR: (peer: Peer) => peer.command('VCPU_CONTROL_MSR', { msr: 0x174, enable: 1 }, 0),
  } as const;

  for (const [name, command] of Object.entries(COMMANDS)) {
    for (const state of ['on', 'off'] as const) {
      it(`ends with it, and with its exit code: after ${name}, the vCPU being ${state}`, async () => {
        for (let round = 0; round < ROUNDS; round++) {
          const vm = await hooked();
          await vm.obey('on');
          // Outside KVM_RUN a vCPU answers when it comes back to it, as in the kernel.
          if (state === 'off') await vm.obey('off');
          const answered = command(vm.peer).catch(() => undefined);
          if (state === 'on') assert.equal((await answered)?.err, 0);
          vm.run.process.stdin!.write('exit\n');
          const { code, stderr } = await vm.run.finished;
          assert.equal(code, 7, stderr);
        }
      });
    }

    it(`lets the vCPU go when the program closes its VM after ${name}, and ends with the program`, async () => {
      const vm = await hooked();
      await vm.obey('on');
      assert.equal((await command(vm.peer)).err, 0);
      await vm.obey('close');
      await vm.peer.closed;
      const before = await count(vm);
      for (const deadline = Date.now() + ANSWERED_MS; (await count(vm)) === before; )
        assert.ok(Date.now() < deadline, 'the guest counts on');
      vm.run.process.stdin!.write('exit\n');
      const { code, stderr } = await vm.run.finished;
      assert.equal(code, 7, stderr);
    });

    it(`ends with it when the main thread has run the vCPU: after ${name}`, async () => {
      const vm = await hooked();
      const answered = command(vm.peer);
      await vm.obey('here');
      await vm.obey('here');
      assert.equal((await answered).err, 0);
      vm.run.process.stdin!.write('exit\n');
      const { code, stderr } = await vm.run.finished;
      assert.equal(code, 7, stderr);
    });

    it(`goes on when the thread of the vCPU ends after ${name}, and another one runs it`, async () => {
      const vm = await hooked();
      await vm.obey('on');
      assert.equal((await command(vm.peer)).err, 0);
      await vm.obey('thread');
      const before = await count(vm);
      await vm.obey('stretch');
      assert.ok((await count(vm)) > before);
    });
  }

  it('a pause is pending until the vCPU runs, and comes before its next instruction', async () => {
    const vm = await hooked();
    for (let round = 0; round < 20; round++) {
      const before = await count(vm);
      assert.equal((await vm.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
      const stretch = vm.obey('stretch');
      const event = await vm.peer.event('PAUSE');
      const { data } = await vm.peer.command('VM_READ_PHYSICAL', { gpa: 0x2010, size: 4 });
      const seen = Buffer.from(data.data).readUInt32LE(0);
      vm.peer.reply(event, 'continue');
      await stretch;
      assert.equal(seen, before, `round ${round}: no instruction before the event`);
    }
  });
});
