import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { RecordingHandler } from '../../../test/kit/recording-handler.ts';
import { CONTINUE, type Vcpu } from '../../machine/index.ts';

const UD = { vector: 6, errorCode: 0, address: 0n };

/** A guest that loops, with a handler that injects at its first request. */
function injecting(exception: Parameters<Vcpu['inject']>[0], code = '48 ff c0 eb fb') {
  const guest = new BareGuest(code);
  const handler = new RecordingHandler();
  guest.machine.attach(handler);
  const vcpu = guest.machine.vcpus[0]!;
  handler.onRequest = () => {
    vcpu.inject(exception);
    return undefined;
  };
  vcpu.request();
  return { guest, handler, vcpu };
}

describe('embedded: injection', () => {
  test('an exception is delivered and a trap stop says so, with rip at the handler', () => {
    const { guest, handler } = injecting(UD);
    let rip = 0n;
    handler.answer = () => {
      rip = guest.rip;
      return CONTINUE;
    };
    guest.machine.run(20);
    assert.deepEqual(handler.stops, [{ kind: 'trap', vector: 6, errorCode: 0, address: 0n }]);
    assert.equal(rip, BigInt(BARE.handlers + 6 * 16));
    assert.equal(guest.vector, 6);
  });

  test('a page fault takes its error code and address along', () => {
    const { guest, handler } = injecting({ vector: 14, errorCode: 7, address: 0xffff_8000_1234_5678n });
    guest.machine.run(20);
    assert.deepEqual(handler.stops, [
      { kind: 'trap', vector: 14, errorCode: 7, address: 0xffff_8000_1234_5678n },
    ]);
    assert.equal(guest.machine.memory.data.getUint32(Number(guest.get('rsp')), true), 7);
    assert.equal(guest.cpu.cr2Lo, 0x12345678);
  });

  test('a vector without an error code drops it', () => {
    const { guest, handler } = injecting({ vector: 6, errorCode: 7, address: 0n });
    guest.machine.run(20);
    assert.equal(handler.stops[0]!.kind === 'trap' && handler.stops[0].errorCode, 0);
    assert.equal(guest.vector, 6);
  });

  test('the exceptions of the SDM that have an error code get it', () => {
    const kept = Array.from({ length: 22 }, (_, vector) => vector).filter((vector) => {
      const { guest, handler } = injecting({ vector, errorCode: 7, address: 0n });
      guest.machine.run(20);
      return handler.stops[0]!.kind === 'trap' && handler.stops[0].errorCode === 7;
    });
    assert.deepEqual(kept, [8, 10, 11, 12, 13, 14, 17, 21]);
  });

  test('a #BP that waits for delivery wins', () => {
    const guest = new BareGuest('cc f4');
    const handler = new RecordingHandler();
    guest.machine.attach(handler);
    const vcpu = guest.machine.vcpus[0]!;
    guest.machine.arm({ kind: 'breakpoint', vcpu });
    handler.answer = (_vcpu, stop) => {
      if (stop.kind === 'breakpoint') vcpu.inject(UD);
      return CONTINUE;
    };
    guest.machine.run(20);
    assert.deepEqual(handler.kinds, ['breakpoint', 'trap']);
    assert.equal(handler.stops[1]!.kind === 'trap' && handler.stops[1].vector, 3);
    assert.equal(guest.vector, 3);
  });

  test('waits while singlestep is on', () => {
    const { guest, handler, vcpu } = injecting(UD);
    guest.machine.arm({ kind: 'singlestep', vcpu });
    guest.machine.run(5);
    assert.deepEqual([...new Set(handler.kinds)], ['singlestep']);
    guest.machine.disarm({ kind: 'singlestep', vcpu });
    guest.machine.run(5);
    assert.equal(handler.kinds.at(-1), 'trap');
    assert.equal(guest.vector, 6);
  });

  test('wakes a vCPU that halts', () => {
    const { guest, handler, vcpu } = injecting(UD, 'f4');
    guest.machine.run(20);
    assert.deepEqual(handler.kinds, ['trap']);
    assert.equal(vcpu.runnable, false);
    assert.equal(guest.vector, 6);
  });

  test('that cannot be delivered reports itself before the vCPU ends', () => {
    const { guest, handler } = injecting(UD);
    const events: string[] = [];
    guest.machine.onCrash = ({ reason }) => events.push(reason);
    handler.answer = (_vcpu, stop) => {
      events.push(stop.kind);
      return CONTINUE;
    };
    guest.cpu.idtr.set(0, 0, 0);
    guest.machine.run(20);
    assert.deepEqual(events, ['trap', 'triple fault']);
  });

  test('that touches a trapped page stops there first, and comes after it', () => {
    const { guest, handler } = injecting(UD);
    guest.machine.arm({ kind: 'page', gfn: BARE.idt >> 12, access: 6, view: 0 });
    guest.machine.run(20);
    assert.deepEqual(handler.kinds.at(0), 'page');
    assert.deepEqual(handler.kinds.at(-1), 'trap');
    assert.equal(guest.vector, 6);
  });

  test('is forgotten when the handler leaves first', () => {
    const { guest, handler, vcpu } = injecting(UD);
    handler.onRequest = () => {
      vcpu.inject(UD);
      guest.machine.detach();
      return undefined;
    };
    guest.machine.run(20);
    assert.deepEqual(handler.kinds, []);
    assert.equal(guest.vector, -1);
  });
});
