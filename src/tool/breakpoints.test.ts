import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { codeOf } from '../../test/kit/hooked.ts';
import { BASE, CODE, ToyVcpu, ToyVm } from '../../test/kit/toy-vm.ts';
import { deferred } from '../awaitable.ts';
import type { KvmiError } from '../error.ts';

const START = 0x1000;
/** Where the loops below have the instruction under the breakpoint. */
const TARGET = BASE + BigInt(START);

type Code = readonly number[];

/** An endless loop of `code` and one `count`. */
function loop(vm: ToyVm, ...code: Code[]): void {
  const body = [...code, CODE.count];
  const size = body.flat().length + 2;
  vm.load(START, ...body, CODE.jump(-size));
}

function counted(vm: ToyVm): number {
  return vm.vcpus.reduce((sum, vcpu) => sum + vcpu.counted, 0);
}

function hitsOn(vm: ToyVm): { hits: number[]; handler: (event: { vcpu: { index: number } }) => void } {
  const hits = vm.vcpus.map(() => 0);
  return {
    hits,
    handler: ({ vcpu }) => {
      hits[vcpu.index]!++;
    },
  };
}

/** The guest is as if there had never been a breakpoint. */
function assertUntouched(vm: ToyVm, code: Uint8Array): void {
  assert.deepEqual(vm.memory.slice(START, START + 0x100), code);
  assert.deepEqual(vm.delivered, []);
  for (const vcpu of vm.vcpus) {
    assert.deepEqual([...vcpu.enabled], [], `events stay enabled on vCPU ${vcpu.index}`);
    assert.equal(vcpu.singlestep, false);
    assert.equal(vcpu.open, false);
  }
}

const programs: readonly [title: string, code: Code][] = [
  ['an instruction that is carried out on registers', CODE.nop5],
  ['one that uses the stack', CODE.push],
  ['one that is single-stepped', CODE.count],
];

for (const dialect of ['v7', 'v9', 'v12'] as const) {
  for (const [title, code] of programs) {
    test(`${dialect}: no vCPU gets past a breakpoint on ${title}`, async () => {
      const vm = await ToyVm.start({ dialect, vcpus: 3 });
      const undo = code === CODE.push ? [CODE.pop] : [];
      loop(vm, code, ...undo);
      const before = vm.memory.slice(START, START + 0x100);
      const perRound = code === CODE.count ? 2 : 1;
      const { hits, handler } = hitsOn(vm);
      const breakpoint = await vm.guest.breakpoints.set(TARGET, handler);
      assert.equal(vm.memory[START], 0xcc);
      vm.run(START);
      await vm.until('300 hits', () => breakpoint.hits >= 300);
      await breakpoint.remove();
      const atRemoval = vm.vcpus.map((vcpu) => vcpu.counted);
      const hitsThen = [...hits];
      await vm.until('the guest to go on', () => counted(vm) > 3000);
      await vm.stop();
      assert.deepEqual(hits, hitsThen, 'it was hit after it was removed');
      atRemoval.forEach((count, index) => {
        const missed = count - hits[index]! * perRound;
        // The last round may not be complete, and after the removal some may have gone by.
        assert.ok(
          missed >= -perRound && missed < 100,
          `vCPU ${index} counted ${count} with ${hits[index]} hits`,
        );
      });
      assertUntouched(vm, before);
      assert.deepEqual(vm.errors, []);
    });
  }
}

test('every pass is a hit: counts agree exactly while the breakpoint is there', async () => {
  for (const code of [CODE.nop5, CODE.push, CODE.count]) {
    const vm = await ToyVm.start({ vcpus: 4 });
    loop(vm, code, ...(code === CODE.push ? [CODE.pop] : []));
    const { hits, handler } = hitsOn(vm);
    const breakpoint = await vm.guest.breakpoints.set(TARGET, handler);
    vm.run(START);
    await vm.until('200 hits', () => breakpoint.hits >= 200);
    const paused = await vm.guest.pause();
    const perRound = code === CODE.count ? 2 : 1;
    vm.vcpus.forEach((vcpu, index) => {
      const rounds = vcpu.counted / perRound;
      assert.ok(
        hits[index]! - rounds >= 0 && hits[index]! - rounds <= 1,
        `${hits[index]} hits, ${rounds} rounds`,
      );
    });
    paused.resume();
    await vm.guest.detach();
    await vm.stop();
  }
});

test('the handler sees the registers, and what it assigns is set', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop5);
  const seen: bigint[] = [];
  const breakpoint = await vm.guest.breakpoints.set(TARGET, (event) => {
    seen.push(event.registers.rax, event.rip);
    event.registers.rax += 2n;
  });
  vm.run(START);
  await vm.until('3 hits', () => breakpoint.hits >= 3);
  assert.deepEqual(seen.slice(0, 6), [0n, TARGET, 2n, TARGET, 4n, TARGET]);
  await breakpoint.remove();
  await vm.stop();
});

test('a handler that moves rip skips the instruction', async () => {
  for (const code of [CODE.nop5, CODE.count]) {
    const vm = await ToyVm.start();
    vm.load(START, code, CODE.jump(-code.length - 2));
    vm.load(START + 0x80, CODE.nop, CODE.stop);
    await vm.guest.breakpoints.set(TARGET, ({ registers }) => {
      registers.rip = TARGET + 0x80n;
      registers.rdi = 5n;
    });
    vm.run(START);
    await vm.until('the halt', () => vm.vcpus[0]!.halted);
    assert.equal(vm.vcpus[0]!.counted, 0);
    assert.equal(vm.vcpus[0]!.get('rdi'), 5n);
    await vm.stop();
  }
});

test('a handler may take its time, and use its vCPU and others', async () => {
  const vm = await ToyVm.start({ vcpus: 2 });
  loop(vm, CODE.count);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, async (event) => {
    assert.equal(await event.vcpu.translate(event.rip), START);
    await vm.guest.vcpus[1 - event.vcpu.index]!.info();
    await turn();
  });
  vm.run(START);
  await vm.until('50 hits', () => breakpoint.hits >= 50);
  await vm.guest.detach();
  await vm.stop();
  assert.deepEqual(vm.errors, []);
});

test('a handler that throws is reported, and the guest goes on', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop5);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {
    throw new Error('mistake');
  });
  vm.run(START);
  await vm.until('2 hits', () => breakpoint.hits >= 2);
  assert.match(vm.errors[0]!.message, /breakpoint at 0xffffffff80001000 failed: mistake/);
  await breakpoint.remove();
  await vm.stop();
});

test('two at one address share the byte; each is called until it is removed', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.count);
  const first = await vm.guest.breakpoints.set(TARGET, () => {});
  const second = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('hits', () => second.hits > 5);
  assert.equal(first.hits, second.hits);
  await first.remove();
  await first.remove();
  const then = first.hits;
  await vm.until('more hits', () => second.hits > then + 5);
  assert.equal(first.hits, then);
  await second.remove();
  assert.deepEqual([...vm.memory.slice(START, START + 2)], [...CODE.count]);
  await vm.stop();
});

test('a handler can remove its own breakpoint, waiting for it or not', async () => {
  for (const wait of [true, false]) {
    for (const code of [CODE.nop5, CODE.count]) {
      const vm = await ToyVm.start({ vcpus: 2 });
      loop(vm, code);
      const before = vm.memory.slice(START, START + 0x100);
      let removed: Promise<void> | undefined;
      await vm.guest.breakpoints.set(TARGET, async (_, self) => {
        removed = self.remove();
        if (wait) await removed;
      });
      vm.run(START);
      await vm.until('the hit', () => removed !== undefined);
      await removed;
      await vm.until('the guest to go on', () => counted(vm) > 500);
      await vm.stop();
      assertUntouched(vm, before);
    }
  }
});

test('setting and removing on a running guest, again and again, leaves nothing', async () => {
  const vm = await ToyVm.start({ vcpus: 3 });
  loop(vm, CODE.nop5, CODE.push, CODE.pop, CODE.count);
  const before = vm.memory.slice(START, START + 0x100);
  vm.run(START);
  let hits = 0;
  for (let i = 0; i < 40; i++) {
    const offsets = [0n, 5n, 7n];
    const set = await Promise.all(
      offsets.map((offset) =>
        vm.guest.breakpoints.set(TARGET + offset, () => {
          hits++;
        }),
      ),
    );
    for (let n = 0; n < i % 5; n++) await turn();
    await Promise.all(set.map((breakpoint) => breakpoint.remove()));
  }
  await vm.stop();
  assert.ok(hits > 100, `only ${hits} hits`);
  assertUntouched(vm, before);
  assert.deepEqual(vm.errors, []);
});

test("the guest's own int3 stays the guest's, also under a breakpoint", async () => {
  const vm = await ToyVm.start();
  vm.load(START, [0xcc], CODE.nop5, CODE.count, CODE.jump(-10));
  const other = await vm.guest.breakpoints.set(TARGET + 1n, () => {});
  vm.run(START);
  await vm.until('deliveries', () => vm.delivered.length > 3 && other.hits > 3);
  assert.ok(vm.delivered.every(({ rip }) => rip === TARGET));
  const own = await vm.guest.breakpoints.set(TARGET, () => {});
  const before = vm.delivered.length;
  await vm.until('more', () => own.hits > 5);
  assert.ok(vm.delivered.length >= before + 4, 'its own handler does not run any more');
  await own.remove();
  assert.equal(vm.memory[START], 0xcc);
  await vm.guest.detach();
  await vm.stop();
});

test('a user handler of BREAKPOINT gets what is not ours', async () => {
  const vm = await ToyVm.start();
  vm.load(START, [0xcc], CODE.nop5, CODE.jump(-8));
  let seen = 0;
  vm.guest.on('BREAKPOINT', ({ registers, data }) => {
    seen++;
    registers.rip += BigInt(data.insn_len);
    return { action: 'retry', registers };
  });
  await vm.guest.enable('BREAKPOINT');
  const breakpoint = await vm.guest.breakpoints.set(TARGET + 1n, () => {});
  vm.run(START);
  await vm.until('hits', () => seen > 3 && breakpoint.hits > 3);
  await breakpoint.remove();
  const then = seen;
  await vm.until('more events', () => seen > then + 3);
  await vm.guest.disable('BREAKPOINT');
  await vm.stop();
  assert.deepEqual([...vm.vcpus[0]!.enabled], []);
});

test('a REP instruction is one hit, however many steps it takes', async () => {
  const vm = await ToyVm.start();
  vm.load(START, CODE.copy, CODE.stop);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, ({ registers }) => {
    registers.rcx = 50n;
  });
  vm.run(START);
  await vm.until('the halt', () => vm.vcpus[0]!.halted);
  assert.equal(breakpoint.hits, 1);
  assert.equal(vm.vcpus[0]!.get('rcx'), 0n);
  assert.equal(vm.memory[START], 0xcc);
  await vm.guest.detach();
  await vm.stop();
});

test('steps that fail are tried again', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.count);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {
    vm.vcpus[0]!.failedSteps = 3;
  });
  vm.run(START);
  await vm.until('hits', () => breakpoint.hits > 10);
  await vm.guest.detach();
  await vm.stop();
  assert.deepEqual(vm.errors, []);
  assert.ok(vm.vcpus[0]!.counted >= 20);
});

test("a user's stack is not written to: the instruction is single-stepped", async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.push, CODE.pop);
  vm.vcpus[0]!.user();
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('hits', () => breakpoint.hits > 5);
  assert.ok(vm.host.got('VCPU_CONTROL_SINGLESTEP').length >= 10);
  await vm.guest.detach();
  await vm.stop();
});

test('when registers cannot be set, the instruction is single-stepped', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop5);
  vm.host.on('VCPU_SET_REGISTERS', () => 95);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('progress', () => counted(vm) > 10);
  assert.equal(vm.errors.length, 1);
  assert.ok(breakpoint.hits > 10);
  await vm.guest.detach();
  await vm.stop();
});

test('without single-stepping, what needs it is refused and the rest works', async () => {
  const vm = await ToyVm.start({ singlestep: false });
  loop(vm, CODE.nop5);
  const countAt = TARGET + 5n;
  assert.equal(await codeOf(vm.guest.breakpoints.set(countAt, () => {})), 'E_UNSUPPORTED');
  assert.deepEqual([...vm.vcpus[0]!.enabled], []);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('hits', () => breakpoint.hits > 5);
  await vm.guest.detach();
  await vm.stop();
});

test('addresses that are not mapped or cannot be written are refused, with nothing left behind', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop5);
  assert.equal(await codeOf(vm.guest.breakpoints.set(0x1000n, () => {})), 'E_NOT_MAPPED');
  vm.host.on('VM_WRITE_PHYSICAL', () => 2);
  vm.run(START);
  assert.equal(await codeOf(vm.guest.breakpoints.set(TARGET, () => {})), 'E_NOT_BACKED');
  assert.deepEqual([...vm.vcpus[0]!.enabled], []);
  vm.host.on('VCPU_CONTROL_EVENTS', () => 1);
  assert.equal(await codeOf(vm.guest.breakpoints.set(TARGET, () => {})), 'E_REPLY');
  await vm.stop();
});

test('a step that is never reported costs the breakpoint, not the guest', async () => {
  const vm = await ToyVm.start({ vcpus: 2, requestTimeout: 50 });
  loop(vm, CODE.count);
  const before = vm.memory.slice(START, START + 0x100);
  vm.host.on('VCPU_CONTROL_SINGLESTEP', () => ({}));
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('the report', () => vm.errors.length > 0);
  assert.equal((vm.errors[0] as KvmiError).code, 'E_BREAKPOINT_LOST');
  await vm.until('the guest to go on', () => counted(vm) > 100);
  await breakpoint.remove();
  await vm.stop();
  assertUntouched(vm, before);
});

test('a lost breakpoint can be set again', async () => {
  const vm = await ToyVm.start({ requestTimeout: 50 });
  loop(vm, CODE.count);
  vm.host.on('VCPU_CONTROL_SINGLESTEP', () => 95);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  await vm.until('the report', () => vm.errors.length > 0);
  vm.host.on('VCPU_CONTROL_SINGLESTEP', ({ body }) => {
    vm.vcpus[0]!.singlestep = body.enable === 1;
    return {};
  });
  const again = await vm.guest.breakpoints.set(TARGET, () => {});
  const then = breakpoint.hits;
  await vm.until('hits', () => again.hits > 5);
  assert.ok(breakpoint.hits > then);
  await vm.guest.detach();
  await vm.stop();
});

test('code that the guest wrote over the int3 is not undone', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop5);
  vm.run(START);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  await vm.until('a hit', () => breakpoint.hits > 0);
  const paused = await vm.guest.pause();
  vm.load(START, CODE.nop, CODE.nop, CODE.nop, CODE.nop, CODE.nop);
  paused.resume();
  await breakpoint.remove();
  assert.deepEqual([...vm.memory.slice(START, START + 5)], [0x90, 0x90, 0x90, 0x90, 0x90]);
  await vm.stop();
});

test('a vCPU that starts later reports breakpoints from its first instruction', async () => {
  const vm = await ToyVm.start({ vcpus: 2 });
  loop(vm, CODE.nop5);
  vm.vcpus[1]!.started = false;
  const { hits, handler } = hitsOn(vm);
  await vm.guest.breakpoints.set(TARGET, handler);
  vm.run(START);
  await vm.until('hits on vCPU 0', () => hits[0]! > 5);
  vm.vcpus[1]!.started = true;
  await vm.until('hits on vCPU 1', () => hits[1]! > 5);
  assert.deepEqual(vm.delivered, []);
  await vm.guest.detach();
  await vm.stop();
});

test('code that the guest rewrote under a lost breakpoint is what a new one restores', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.count);
  let rewrite = true;
  const first = await vm.guest.breakpoints.set(TARGET, () => {
    if (rewrite) vm.load(START, CODE.nop, CODE.nop);
    rewrite = false;
  });
  vm.run(START);
  await vm.until('the rewrite', () => !rewrite && counted(vm) > 10);
  const second = await vm.guest.breakpoints.set(TARGET, () => {});
  await vm.until('hits', () => second.hits > 3 && first.hits > 3);
  await Promise.all([first.remove(), second.remove()]);
  assert.deepEqual([...vm.memory.slice(START, START + 2)], [0x90, 0x90]);
  await vm.stop();
});

test('what is turned on for a vCPU that was not started is on when it starts, unless it was turned off', async () => {
  const vm = await ToyVm.start({ vcpus: 2 });
  loop(vm, CODE.nop);
  vm.vcpus[1]!.started = false;
  await vm.guest.enable('HYPERCALL');
  await vm.guest.enable('CR');
  await vm.guest.disable('CR');
  const id = (name: 'HYPERCALL' | 'CR') => vm.host.dialect.event(name)!.id;
  assert.deepEqual([...vm.vcpus[0]!.enabled], [id('HYPERCALL')]);
  assert.deepEqual([...vm.vcpus[1]!.enabled], []);
  vm.run(START);
  vm.vcpus[1]!.started = true;
  await vm.until('progress', () => vm.vcpus[1]!.counted > 3);
  assert.deepEqual([...vm.vcpus[1]!.enabled], [id('HYPERCALL')]);
  assert.deepEqual(vm.errors, []);
  await vm.stop();
});

test('dialect v7: a vCPU that is created reports breakpoints from its first instruction', async () => {
  const vm = await ToyVm.start({ dialect: 'v7', vcpus: 1 });
  loop(vm, CODE.nop5);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.vcpus.push(new ToyVcpu(1));
  await vm.host.event('CREATE_VCPU', 1, {});
  assert.deepEqual([...vm.vcpus[1]!.enabled], [...vm.vcpus[0]!.enabled]);
  vm.run(START);
  await vm.until('hits', () => breakpoint.hits > 10);
  await breakpoint.remove();
  assert.deepEqual([...vm.vcpus[1]!.enabled], []);
  await vm.stop();
});

test('single-stepping by the user and by breakpoints get along', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.count, CODE.nop);
  const breakpoint = await vm.guest.breakpoints.set(TARGET, () => {});
  vm.run(START);
  const rips: bigint[] = [];
  await vm.guest.singlestep(vm.guest.vcpus[0]!, ({ registers }) => {
    rips.push(registers.rip - TARGET);
    return rips.length < 40;
  });
  assert.equal(vm.vcpus[0]!.singlestep, false);
  const order = new Map([
    [0n, 2n],
    [2n, 3n],
    [3n, 5n],
    [5n, 0n],
  ]);
  for (let i = 1; i < rips.length; i++)
    assert.equal(rips[i], order.get(rips[i - 1]!), `step ${i} of ${rips}`);
  assert.ok(breakpoint.hits >= 9);
  await vm.guest.detach();
  await vm.stop();
});

test('single-stepping ends when its handler throws, with the vCPU running', async () => {
  const vm = await ToyVm.start();
  loop(vm, CODE.nop);
  vm.run(START);
  await assert.rejects(
    vm.guest.singlestep(vm.guest.vcpus[0]!, () => {
      throw new Error('enough');
    }),
    /enough/,
  );
  await vm.until('progress', () => counted(vm) > 10);
  assert.equal(vm.vcpus[0]!.singlestep, false);
  await vm.stop();
});

test('single-stepping that the host cannot do is refused', async () => {
  const vm = await ToyVm.start({ singlestep: false });
  assert.equal(await codeOf(vm.guest.singlestep(vm.guest.vcpus[0]!, () => true)), 'E_REPLY');
});

test('detach in the middle of everything gives the guest back', async () => {
  for (let delay = 0; delay < 30; delay++) {
    const vm = await ToyVm.start({ vcpus: 3 });
    loop(vm, CODE.count, CODE.nop5, CODE.push, CODE.pop);
    const before = vm.memory.slice(START, START + 0x100);
    const gate = deferred<void>();
    for (const offset of [0n, 2n, 7n]) {
      await vm.guest.breakpoints.set(TARGET + offset, (event) =>
        event.vcpu.index === 2 ? gate.promise : undefined,
      );
    }
    vm.run(START);
    for (let i = 0; i < delay; i++) await turn();
    await vm.guest.detach();
    gate.resolve();
    await vm.until('the host to notice', () => vm.host.closed);
    assert.deepEqual(vm.memory.slice(START, START + 0x100), before);
    assert.deepEqual(vm.delivered, []);
    assert.deepEqual(vm.errors, []);
  }
});

test('a connection that is lost in the middle of a step rejects and reports nothing more', async () => {
  for (let delay = 0; delay < 30; delay++) {
    const vm = await ToyVm.start({ vcpus: 2 });
    loop(vm, CODE.count, CODE.push, CODE.pop);
    await vm.guest.breakpoints.set(TARGET, () => {});
    await vm.guest.breakpoints.set(TARGET + 2n, () => {});
    vm.run(START);
    for (let i = 0; i < delay; i++) await turn();
    vm.host.channel.shutdown();
    await vm.guest.closed;
    await vm.guest.detach();
    for (let i = 0; i < 5; i++) await turn();
    assert.deepEqual(vm.errors, []);
  }
});
