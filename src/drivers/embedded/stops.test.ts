import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { RecordingHandler } from '../../../test/kit/recording-handler.ts';
import { regsOf, STATE_SIZE } from '../../abi/index.ts';
import {
  ACCESS,
  type Answer,
  CONTINUE,
  CRASH,
  REFUSE,
  RETRY,
  type Stop,
  type Trap,
} from '../../machine/index.ts';

type Unbound = Trap extends infer T ? (T extends { vcpu: unknown } ? Omit<T, 'vcpu'> : T) : never;

/** A guest with a handler attached and traps armed on vCPU 0. */
function trapped(code: string, ...traps: Unbound[]): { guest: BareGuest; handler: RecordingHandler } {
  const guest = new BareGuest(code);
  const handler = new RecordingHandler();
  guest.machine.attach(handler);
  for (const trap of traps) guest.machine.arm({ ...trap, vcpu: guest.machine.vcpus[0]! } as Trap);
  return { guest, handler };
}

/** Answers the first stop with `answer` and every later one with continue. */
function answerFirst(handler: RecordingHandler, answer: Answer, act?: (stop: Stop) => void): void {
  handler.answer = (_vcpu, stop) => {
    if (handler.stops.length > 1) return CONTINUE;
    act?.(stop);
    return answer;
  };
}

/** Writes registers of the vCPU as a tool does, through kvm_regs. */
function setRip(guest: BareGuest, rip: number): void {
  const vcpu = guest.machine.vcpus[0]!;
  const state = new Uint8Array(STATE_SIZE);
  vcpu.readState(state);
  const regs = regsOf(state).slice();
  new DataView(regs.buffer).setBigUint64(128, BigInt(rip), true);
  vcpu.writeRegisters(regs);
}

const page = (access: number, gfn = BARE.data >> 12): Unbound => ({ kind: 'page', gfn, access, view: 0 });

const WRMSR = 'b9 40 01 00 00 b8 01 00 00 00 31 d2 0f 30 0f 32 f4'; // MSR 0x140 = 1; rdmsr; hlt
const WRITE_CR4 = '0f 20 e0 0d 00 08 00 00 0f 22 e0 0f 20 e3 f4'; // cr4 |= UMIP; mov rbx, cr4; hlt
const VMCALL = 'b8 22 00 00 00 bf 18 00 00 00 31 f6 0f 01 c1 f4';
const XSETBV = '31 c9 31 d2 b8 07 00 00 00 0f 01 d1 f4'; // xcr0 = 7
const STORE = '48 89 04 25 00 00 03 00 f4';
const READ = '48 8b 04 25 00 00 03 00 f4';

describe('embedded: stops', () => {
  describe('breakpoint', () => {
    test('comes with rip at the int3, its gpa and length', () => {
      const { guest, handler } = trapped('90 cc f4', { kind: 'breakpoint' });
      let rip = 0n;
      answerFirst(handler, CONTINUE, () => {
        rip = guest.rip;
      });
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [{ kind: 'breakpoint', gpa: BARE.code + 1, length: 1 }]);
      assert.equal(rip, BigInt(BARE.code + 1));
    });

    test('continue delivers #BP to the guest', () => {
      const { guest } = trapped('cc f4', { kind: 'breakpoint' });
      guest.machine.run(20);
      assert.equal(guest.vector, 3);
    });

    test('retry enters the guest again where rip is now', () => {
      const { guest, handler } = trapped('cc 48 ff c0 f4', { kind: 'breakpoint' });
      answerFirst(handler, RETRY, () => setRip(guest, BARE.code + 1));
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, ['breakpoint']);
      assert.equal(guest.get('rax'), 1n);
      assert.equal(guest.vector, -1);
    });

    test('retry without a change traps again', () => {
      const { guest, handler } = trapped('cc f4', { kind: 'breakpoint' });
      answerFirst(handler, RETRY);
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, ['breakpoint', 'breakpoint']);
    });

    test('a disarmed breakpoint is the guest’s own again', () => {
      const { guest, handler } = trapped('cc f4', { kind: 'breakpoint' });
      guest.machine.disarm({ kind: 'breakpoint', vcpu: guest.machine.vcpus[0]! });
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, []);
      assert.equal(guest.vector, 3);
    });

    test('an address that has no translation any more is all ones', () => {
      const { guest, handler } = trapped('cc', { kind: 'breakpoint' });
      guest.machine.run(0);
      guest.cpu.cr3Lo = 0x40000; // empty tables: only the cached translation is left
      guest.machine.step();
      const [stop] = handler.stops;
      assert.equal(stop === undefined || (stop.kind === 'breakpoint' && stop.gpa === 2 ** 64), true);
    });
  });

  describe('control registers', () => {
    const cr4: Unbound = { kind: 'cr', cr: 4 };

    test('a write that changes the value is reported before it happens', () => {
      const { guest, handler } = trapped(WRITE_CR4, cr4);
      let during = 0;
      const before = guest.cpu.cr4;
      answerFirst(handler, CONTINUE, () => {
        during = guest.cpu.cr4;
      });
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [
        { kind: 'cr', cr: 4, old: BigInt(before), new: BigInt(before | 0x800) },
      ]);
      assert.equal(during, before);
      assert.equal(guest.get('rbx'), BigInt(before | 0x800));
    });

    test('continue with a value stores that value', () => {
      const { guest, handler } = trapped(WRITE_CR4, cr4);
      const before = guest.cpu.cr4;
      answerFirst(handler, { action: 'continue', value: BigInt(before) });
      guest.machine.run(20);
      assert.equal(guest.get('rbx'), BigInt(before));
    });

    test('continue with a value that cannot be stored raises #GP', () => {
      const { guest, handler } = trapped(WRITE_CR4, cr4);
      answerFirst(handler, { action: 'continue', value: 1n << 40n });
      guest.machine.run(20);
      assert.equal(guest.vector, 13);
    });

    test('refuse raises #GP and changes nothing', () => {
      const { guest, handler } = trapped(WRITE_CR4, cr4);
      const before = guest.cpu.cr4;
      answerFirst(handler, REFUSE);
      guest.machine.run(20);
      assert.equal(guest.vector, 13);
      assert.equal(guest.cpu.cr4, before);
    });

    test('an equal value is not reported', () => {
      const { guest, handler } = trapped('0f 20 e0 0f 22 e0 0f 20 d8 0f 22 d8 0f 20 c0 0f 22 c0 f4', cr4, {
        kind: 'cr',
        cr: 3,
      });
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, []);
    });

    test('a value that the processor refuses is not reported', () => {
      const { guest, handler } = trapped('0f 20 e0 0d 00 00 00 80 0f 22 e0 f4', cr4); // reserved bit 31
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, []);
      assert.equal(guest.vector, 13);
    });

    test('cr3 and cr0, and CLTS as a write of cr0', () => {
      const { guest, handler } = trapped(
        '0f 20 d8 48 83 c8 08 0f 22 d8 0f 20 c0 48 83 c8 08 0f 22 c0 0f 06 f4', // cr3 |= 8; cr0 |= TS; clts
        { kind: 'cr', cr: 3 },
        { kind: 'cr', cr: 0 },
      );
      guest.machine.run(30);
      assert.deepEqual(
        handler.stops.map((stop) => stop.kind === 'cr' && [stop.cr, stop.new ^ stop.old]),
        [
          [3, 8n],
          [0, 8n],
          [0, 8n],
        ],
      );
      assert.equal(guest.cpu.cr3Lo, BARE.pml4 | 8);
    });
  });

  describe('MSRs', () => {
    const msr: Unbound = { kind: 'msr', msr: 0x140 };

    test('a write that changes a selected MSR is reported, and stored on continue', () => {
      const { guest, handler } = trapped(WRMSR, msr);
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [{ kind: 'msr', msr: 0x140, old: 0n, new: 1n }]);
      assert.equal(guest.get('rax'), 1n);
    });

    test('continue with the old value leaves the MSR', () => {
      const { guest, handler } = trapped(WRMSR, msr);
      answerFirst(handler, { action: 'continue', value: 0n });
      guest.machine.run(20);
      assert.equal(guest.get('rax'), 0n);
      assert.equal(guest.vector, -1);
    });

    test('refuse raises #GP', () => {
      const { guest, handler } = trapped(WRMSR, msr);
      answerFirst(handler, REFUSE);
      guest.machine.run(20);
      assert.equal(guest.vector, 13);
      assert.equal(guest.machine.vcpus[0]!.readMsr(0x140), 0n);
    });

    test('other MSRs and equal values are not reported', () => {
      const { guest, handler } = trapped(WRMSR, { kind: 'msr', msr: 0x174 });
      guest.machine.run(20);
      guest.rip = BigInt(BARE.code);
      guest.machine.arm({ kind: 'msr', msr: 0x140, vcpu: guest.machine.vcpus[0]! });
      guest.cpu.attention = 0;
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, []);
    });
  });

  describe('xsetbv', () => {
    test('is reported with the new value in effect', () => {
      const { guest, handler } = trapped(XSETBV, { kind: 'xsetbv' });
      let during = 0n;
      answerFirst(handler, CONTINUE, () => {
        during = guest.machine.vcpus[0]!.xcr0();
      });
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [{ kind: 'xsetbv', xcr: 0, old: 1n, new: 7n }]);
      assert.equal(during, 7n);
      assert.equal(guest.rip, BigInt(BARE.code + 13));
    });
  });

  describe('descriptor tables', () => {
    const CASES = [
      ['0f 01 04 25 00 00 03 00', 2, false],
      ['0f 01 14 25 00 00 03 00', 2, true],
      ['0f 01 0c 25 00 00 03 00', 1, false],
      ['0f 01 1c 25 00 00 03 00', 1, true],
      ['0f 00 c0', 3, false],
      ['31 c0 0f 00 d0', 3, true],
      ['0f 00 c8', 4, false],
      ['b8 28 00 00 00 0f 00 d8', 4, true],
    ] as const;
    for (const [code, table, write] of CASES) {
      test(`${code}: table ${table}, ${write ? 'load' : 'store'}`, () => {
        const { guest, handler } = trapped(`${code} 48 c7 c1 01 00 00 00 f4`, { kind: 'descriptor' });
        guest.machine.run(20);
        assert.deepEqual(handler.stops, [{ kind: 'descriptor', table, write }]);
        assert.equal(guest.get('rcx'), 1n, 'the instruction after it ran');
      });
    }

    test('retry does not perform the access', () => {
      const { guest, handler } = trapped('0f 01 04 25 00 00 03 00 f4', { kind: 'descriptor' });
      answerFirst(handler, RETRY, () => setRip(guest, BARE.code + 8));
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, ['descriptor']);
      assert.equal(guest.machine.memory.data.getUint16(BARE.data, true), 0);
    });

    test('continue performs it, and asks again for the next one', () => {
      const { guest, handler } = trapped('0f 01 04 25 00 00 03 00 0f 01 04 25 00 00 03 00 f4', {
        kind: 'descriptor',
      });
      guest.machine.run(20);
      assert.equal(handler.stops.length, 2);
      assert.equal(guest.machine.memory.data.getUint16(BARE.data, true), 0x37);
    });
  });

  describe('hypercalls', () => {
    test('the introspection call is reported and returns 0', () => {
      for (const [code, ring3] of [
        [VMCALL, false],
        [VMCALL.replace('c1', 'd9'), false],
        [VMCALL, true],
      ] as const) {
        const { guest, handler } = trapped(code, { kind: 'hypercall' });
        if (ring3) guest.enterRing3();
        guest.machine.run(4);
        assert.deepEqual(handler.kinds, ['hypercall']);
        assert.equal(guest.get('rax'), 0n);
        assert.equal(guest.rip, BigInt(BARE.code + 15));
      }
    });

    test('without a trap, and with other arguments, it returns -1000', () => {
      const plain = new BareGuest(VMCALL);
      plain.machine.run(20);
      assert.equal(BigInt.asIntN(64, plain.get('rax')), -1000n);
      const { guest, handler } = trapped(VMCALL.replace('bf 18', 'bf 19'), { kind: 'hypercall' });
      guest.machine.run(20);
      assert.equal(BigInt.asIntN(64, guest.get('rax')), -1000n);
      assert.deepEqual(handler.kinds, []);
    });
  });

  describe('cpuid', () => {
    const CPUID = 'b8 07 00 00 00 b9 02 00 00 00 0f a2 f4'; // leaf 7, subleaf 2

    test('is reported, and skipped with the registers that the handler left', () => {
      const { guest, handler } = trapped(CPUID, { kind: 'cpuid' });
      answerFirst(handler, CONTINUE, () => guest.set('rbx', 99n));
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [{ kind: 'cpuid', leaf: 7, subleaf: 2, length: 2 }]);
      assert.equal(guest.get('rbx'), 99n);
      assert.equal(guest.get('rax'), 7n);
    });

    test('a handler that moved rip itself is not moved further', () => {
      const { guest, handler } = trapped(CPUID, { kind: 'cpuid' });
      answerFirst(handler, CONTINUE, () => setRip(guest, BARE.code + 12));
      guest.machine.run(20);
      assert.equal(guest.rip, BigInt(BARE.code + 13));
      assert.deepEqual(handler.kinds, ['cpuid']);
    });
  });

  describe('singlestep', () => {
    test('comes after each instruction', () => {
      const { guest, handler } = trapped('48 ff c0 48 ff c0 eb 00 f4', { kind: 'singlestep' });
      const rips: number[] = [];
      handler.answer = () => {
        rips.push(Number(guest.rip) - BARE.code);
        return CONTINUE;
      };
      guest.machine.run(4);
      assert.deepEqual(rips, [3, 6, 8, 9]);
      assert.deepEqual(handler.stops[0], { kind: 'singlestep', failed: false });
    });

    test('says failed when another stop came in between', () => {
      const { guest, handler } = trapped(VMCALL, { kind: 'singlestep' }, { kind: 'hypercall' });
      guest.machine.run(6);
      assert.deepEqual(
        handler.stops.slice(3).map((stop) => (stop.kind === 'singlestep' ? stop.failed : stop.kind)),
        ['hypercall', true, false],
      );
    });

    test('a page stop in between is not a failure', () => {
      const { guest, handler } = trapped(STORE, { kind: 'singlestep' }, page(ACCESS.read));
      guest.machine.run(1);
      assert.deepEqual(handler.kinds, ['page', 'singlestep']);
      assert.equal(handler.stops[1]!.kind === 'singlestep' && handler.stops[1].failed, false);
    });

    test('no interrupt is delivered meanwhile', () => {
      const { guest, handler } = trapped('fb 90 90 90 eb fb', { kind: 'singlestep' });
      guest.machine.interrupt(0x40);
      guest.machine.run(10);
      assert.equal(guest.vector, -1);
      guest.machine.disarm({ kind: 'singlestep', vcpu: guest.machine.vcpus[0]! });
      guest.machine.run(10);
      assert.equal(guest.vector, 0x40);
      assert.equal(handler.kinds.length, 10);
    });

    test('an interrupt ends HLT all the same', () => {
      const { guest, handler } = trapped('fb f4 48 ff c0 f4', { kind: 'singlestep' });
      guest.machine.run(10);
      assert.equal(guest.get('rax'), 0n);
      guest.machine.interrupt(0x40);
      guest.machine.run(1);
      assert.equal(guest.get('rax'), 1n);
      assert.equal(handler.kinds.length, 3);
    });

    test('an exception counts as a step, to its handler', () => {
      const { guest, handler } = trapped('0f 0b', { kind: 'singlestep' });
      const rips: bigint[] = [];
      handler.answer = () => {
        rips.push(guest.rip);
        return CONTINUE;
      };
      guest.machine.run(2);
      assert.deepEqual(rips, [BigInt(BARE.handlers + 6 * 16)]);
    });
  });

  describe('pages', () => {
    test('a denied write is reported before it happens', () => {
      const { guest, handler } = trapped(STORE, page(ACCESS.read | ACCESS.execute));
      guest.set('rax', 5n);
      let during = 0n;
      answerFirst(handler, CONTINUE, () => {
        during = guest.machine.memory.data.getBigUint64(BARE.data, true);
      });
      guest.machine.run(20);
      assert.deepEqual(handler.stops, [
        { kind: 'page', gva: BigInt(BARE.data), gpa: BARE.data, access: ACCESS.write, view: 0 },
      ]);
      assert.equal(during, 0n);
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 5n);
    });

    test('a denied read, and a denied fetch', () => {
      const reader = trapped(READ, page(ACCESS.write | ACCESS.execute));
      reader.guest.machine.run(20);
      assert.deepEqual(
        reader.handler.stops.map((stop) => stop.kind === 'page' && stop.access),
        [ACCESS.read],
      );
      const runner = trapped('b8 00 00 03 00 ff e0', page(ACCESS.read | ACCESS.write));
      runner.guest.write(BARE.data, '48 ff c1 f4'); // inc rcx; hlt
      runner.guest.machine.run(20);
      assert.deepEqual(
        runner.handler.stops.map(
          (stop) => stop.kind === 'page' && [Number(stop.gva) - BARE.data, stop.access],
        ),
        [
          [0, ACCESS.execute],
          [3, ACCESS.execute],
        ],
      );
      assert.equal(runner.guest.get('rcx'), 1n);
    });

    test('continue holds for this once', () => {
      const { guest, handler } = trapped(STORE.replace('f4', STORE), page(ACCESS.read));
      guest.machine.run(20);
      assert.equal(handler.stops.length, 2);
    });

    test('retry after the right was given goes on without another stop', () => {
      const { guest, handler } = trapped(STORE, page(ACCESS.read));
      guest.set('rax', 6n);
      answerFirst(handler, RETRY, () => guest.machine.arm(page(ACCESS.all) as Trap));
      guest.machine.run(20);
      assert.equal(handler.stops.length, 1);
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 6n);
    });

    test('a read-modify-write reports what is denied of it', () => {
      const { guest, handler } = trapped('48 83 04 25 00 00 03 00 01 f4', page(ACCESS.read));
      guest.machine.run(20);
      assert.deepEqual(
        handler.stops.map((stop) => stop.kind === 'page' && stop.access),
        [ACCESS.write],
      );
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 1n);
    });

    test('an access across pages reports each trapped page once', () => {
      const { guest, handler } = trapped(
        '48 89 04 25 fc 0f 03 00 f4',
        page(0),
        page(0, (BARE.data >> 12) + 1),
      );
      guest.set('rax', 0x1122334455667788n);
      guest.machine.run(20);
      assert.deepEqual(
        handler.stops.map((stop) => stop.kind === 'page' && stop.gpa),
        [BARE.data + 0xffc, BARE.data + 0x1000],
      );
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data + 0xffc, true), 0x1122334455667788n);
    });

    const REP = 'be 00 10 03 00 bf 00 00 03 00 b9 08 00 00 00 f3 a4 f4'; // 8 bytes from data + 0x1000 to data

    test('a string instruction reports each iteration', () => {
      const { guest, handler } = trapped(REP, page(ACCESS.read));
      guest.write(BARE.data + 0x1000, '01 02 03 04 05 06 07 08');
      guest.machine.run(50);
      assert.equal(handler.stops.length, 8);
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 0x0807060504030201n);
    });

    test('repComplete ends the stops of this instruction, and only of this one', () => {
      const { guest, handler } = trapped(REP.replace('f4', REP), page(ACCESS.read));
      handler.answer = () => ({ action: 'continue', repComplete: true });
      guest.machine.run(60);
      assert.equal(handler.stops.length, 2);
    });

    test('substitute gives a read other bytes', () => {
      const { guest, handler } = trapped(READ, page(ACCESS.write));
      guest.machine.memory.data.setBigUint64(BARE.data, 0x1111111111111111n, true);
      handler.answer = () => ({
        action: 'continue',
        substitute: { gva: BigInt(BARE.data + 2), bytes: new Uint8Array([0xaa, 0xbb]) },
      });
      guest.machine.run(20);
      assert.equal(guest.get('rax'), 0x11111111bbaa1111n);
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 0x1111111111111111n);
    });

    test('what a handler changes before it lets an access go on counts', () => {
      const { guest, handler } = trapped(STORE, page(ACCESS.read));
      guest.set('rax', 1n);
      answerFirst(handler, CONTINUE, () => {
        const vcpu = guest.machine.vcpus[0]!;
        const state = new Uint8Array(STATE_SIZE);
        vcpu.readState(state);
        const regs = regsOf(state).slice();
        regs[0] = 2;
        vcpu.writeRegisters(regs);
      });
      guest.machine.run(20);
      assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 2n);
      assert.equal(handler.stops.length, 1);
    });

    test('a singlestep that is armed in a page stop comes after that instruction', () => {
      const { guest, handler } = trapped(STORE, page(ACCESS.read));
      answerFirst(handler, CONTINUE, () => {
        guest.machine.arm({ kind: 'singlestep', vcpu: guest.machine.vcpus[0]! });
      });
      guest.machine.run(1);
      assert.deepEqual(handler.kinds, ['page', 'singlestep']);
      assert.equal(guest.rip, BigInt(BARE.code + 8));
    });

    test('rip is that of the instruction, in the middle of a block too', () => {
      const { guest, handler } = trapped(`48 ff c0 ${STORE.replace('f4', STORE)}`, page(ACCESS.read));
      const rips: number[] = [];
      handler.answer = () => {
        rips.push(Number(guest.rip) - BARE.code);
        return CONTINUE;
      };
      guest.machine.run(20);
      assert.deepEqual(rips, [3, 11]);
      assert.equal(guest.get('rax'), 1n);
    });

    test('what the page walk does is not reported', () => {
      const { guest, handler } = trapped(STORE, page(0, BARE.pageTable >> 12), page(0, BARE.pml4 >> 12));
      guest.machine.run(20);
      assert.deepEqual(handler.kinds, []);
      assert.notEqual(
        guest.machine.memory.data.getUint32(BARE.pageTable + (BARE.data >> 12) * 8, true) & 64,
        0,
      );
    });

    test('the delivery of an exception is: its stack, the IDT', () => {
      const { guest, handler } = trapped(
        '0f 0b',
        page(ACCESS.read, (BARE.stack - 8) >> 12),
        page(0, BARE.idt >> 12),
      );
      guest.machine.run(20);
      assert.deepEqual([...new Set(handler.kinds)], ['page']);
      assert.ok(handler.stops.some((stop) => stop.kind === 'page' && stop.gpa >> 12 === BARE.idt >> 12));
      assert.ok(
        handler.stops.some((stop) => stop.kind === 'page' && stop.gpa >> 12 === (BARE.stack - 8) >> 12),
      );
      assert.equal(guest.vector, 6);
    });
  });

  test('crash takes the vCPU out of the guest for good, whatever the stop', () => {
    const CASES: [string, Unbound][] = [
      ['cc', { kind: 'breakpoint' }],
      [WRMSR, { kind: 'msr', msr: 0x140 }],
      [WRITE_CR4, { kind: 'cr', cr: 4 }],
      [XSETBV, { kind: 'xsetbv' }],
      ['0f 00 c0', { kind: 'descriptor' }],
      [VMCALL, { kind: 'hypercall' }],
      ['0f a2', { kind: 'cpuid' }],
      ['90', { kind: 'singlestep' }],
      [STORE, page(0)],
    ];
    for (const [code, trap] of CASES) {
      const { guest, handler } = trapped(code, trap);
      const crashes: string[] = [];
      guest.machine.onCrash = ({ reason }) => crashes.push(reason);
      handler.answer = () => CRASH;
      guest.machine.run(20);
      assert.deepEqual(crashes, ['answer'], trap.kind);
      assert.equal(guest.machine.run(20), 0, trap.kind);
      assert.equal(handler.stops.length, 1, trap.kind);
    }
  });

  test('what a handler let through happens before an interrupt that came meanwhile', async () => {
    const { guest, handler } = trapped(`fb 90 ${STORE}`, page(ACCESS.read));
    guest.set('rax', 3n);
    let answer: (answer: Answer) => void = () => {};
    handler.answer = () =>
      new Promise((resolve) => {
        answer = resolve;
      });
    guest.machine.run(10);
    guest.machine.interrupt(0x40);
    answer(CONTINUE);
    await new Promise(setImmediate);
    guest.machine.run(10);
    assert.deepEqual(handler.kinds, ['page']);
    assert.equal(guest.machine.memory.data.getBigUint64(BARE.data, true), 3n);
    assert.equal(guest.vector, 0x40);
  });

  test('a stop is open until its promise is there, and other vCPUs go on', async () => {
    const guest = new BareGuest('cc f4', { vcpus: 2 });
    const other = guest.machine.vcpus[1]!;
    guest.write(0x11000, '48 ff c0 eb fb'); // inc rax, for ever
    other.started = true;
    other.cpu.ripLo = 0x11000;
    const handler = new RecordingHandler();
    guest.machine.attach(handler);
    guest.machine.arm({ kind: 'breakpoint', vcpu: guest.machine.vcpus[0]! });
    let answer: (answer: Answer) => void = () => {};
    handler.answer = () =>
      new Promise((resolve) => {
        answer = resolve;
      });
    guest.machine.run(1000);
    assert.equal(guest.rip, BigInt(BARE.code));
    assert.ok(other.cpu.r[0]! > 100, 'the other vCPU counted');
    answer(CONTINUE);
    await new Promise(setImmediate);
    guest.machine.run(1000);
    assert.equal(guest.vector, 3);
  });
});
