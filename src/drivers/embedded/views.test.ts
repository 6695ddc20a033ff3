import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BARE, BareGuest } from '../../../test/kit/bare-guest.ts';
import { RecordingHandler } from '../../../test/kit/recording-handler.ts';
import { ACCESS } from '../../machine/index.ts';

const READ_LOOP = '48 8b 04 25 00 00 03 00 eb f6'; // 1: mov rax, [0x30000]; jmp 1b
const DATA = BARE.data >> 12;

function viewed(code: string) {
  const guest = new BareGuest(code);
  const handler = new RecordingHandler();
  guest.machine.attach(handler);
  return { guest, handler, views: guest.machine.views, vcpu: guest.machine.vcpus[0]! };
}

describe('embedded: views', () => {
  test('a restriction holds in its view only', () => {
    const { guest, handler, views, vcpu } = viewed(READ_LOOP);
    const view = views.create()!;
    guest.machine.arm({ kind: 'page', gfn: DATA, access: ACCESS.write, view });
    guest.machine.run(4);
    assert.deepEqual(handler.kinds, []);
    assert.equal(views.switch(vcpu, view), true);
    guest.machine.run(2);
    assert.deepEqual(handler.stops, [
      { kind: 'page', gva: BigInt(BARE.data), gpa: BARE.data, access: ACCESS.read, view },
    ]);
    assert.equal(views.current(vcpu), view);
    views.switch(vcpu, 0);
    guest.machine.run(4);
    assert.equal(handler.stops.length, 1);
  });

  test('changeGfn shows another frame, in its view only, until it is restored', () => {
    const { guest, views, vcpu } = viewed(READ_LOOP);
    guest.machine.memory.data.setUint32(BARE.data, 1, true);
    guest.machine.memory.data.setUint32(BARE.data + 0x1000, 2, true);
    const view = views.create()!;
    assert.equal(views.changeGfn(view, DATA, DATA + 1), true);
    guest.machine.run(2);
    assert.equal(guest.get('rax'), 1n);
    views.switch(vcpu, view);
    guest.machine.run(2);
    assert.equal(guest.get('rax'), 2n);
    views.changeGfn(view, DATA, DATA);
    guest.machine.run(2);
    assert.equal(guest.get('rax'), 1n);
  });

  test('changeGfn works for code: a breakpoint in a copy is seen in one view only', () => {
    const { guest, views, vcpu } = viewed(READ_LOOP);
    guest.write(0x40000, `cc${READ_LOOP.slice(2)}`);
    const view = views.create()!;
    views.changeGfn(view, BARE.code >> 12, 0x40);
    guest.machine.run(10);
    assert.equal(guest.vector, -1);
    views.switch(vcpu, view);
    guest.machine.run(10);
    assert.equal(guest.vector, 3);
  });

  test('views have limits: number, use, existence', () => {
    const { guest, views, vcpu } = viewed(READ_LOOP);
    const first = views.create()!;
    for (let i = 2; i < views.limit; i++) assert.equal(typeof views.create(), 'number');
    assert.equal(views.create(), undefined);
    assert.equal(views.destroy(0), false);
    assert.equal(views.destroy(99), false);
    views.switch(vcpu, first);
    assert.equal(views.destroy(first), false);
    views.switch(vcpu, 0);
    assert.equal(views.destroy(first), true);
    assert.equal(views.exists(first), false);
    assert.equal(views.switch(vcpu, first), false);
    assert.equal(views.changeGfn(first, 1, 2), false);
    assert.equal(views.changeGfn(0, DATA, 0x7000000), false);
    assert.throws(() => guest.machine.arm({ kind: 'page', gfn: 1, access: 0, view: 99 }), /no view 99/);
  });

  test('detaching restores the one view that the guest had', () => {
    const { guest, views, vcpu } = viewed(READ_LOOP);
    const view = views.create()!;
    views.changeGfn(view, DATA, DATA + 1);
    views.switch(vcpu, view);
    guest.machine.detach();
    guest.machine.memory.data.setUint32(BARE.data, 7, true);
    guest.machine.run(2);
    assert.equal(guest.get('rax'), 7n);
    assert.equal(views.exists(view), false);
  });

  test('the guest switches with VMFUNC to views that are visible', () => {
    const { guest, views, vcpu } = viewed('31 c0 b9 01 00 00 00 0f 01 d4 f4'); // vmfunc leaf 0, view 1
    const view = views.create()!;
    views.setVisible(vcpu, view, true);
    guest.machine.run(10);
    assert.equal(views.current(vcpu), view);
    const hidden = viewed('31 c0 b9 01 00 00 00 0f 01 d4 f4');
    hidden.views.create();
    hidden.guest.machine.run(10);
    assert.equal(hidden.guest.vector, 6);
  });

  test('a write bitmap lets writes to its parts through', () => {
    // mov [0x30000], al; mov [0x30080], al; mov [0x3007f], ax
    const { guest, handler, views } = viewed(
      '88 04 25 00 00 03 00 88 04 25 80 00 03 00 66 89 04 25 7f 00 03 00 f4',
    );
    guest.machine.arm({ kind: 'page', gfn: DATA, access: ACCESS.read | ACCESS.execute, view: 0 });
    assert.equal(views.setWriteBitmap(0, DATA, 0b10), true);
    guest.machine.run(10);
    assert.deepEqual(
      handler.stops.map((stop) => stop.kind === 'page' && stop.gpa - BARE.data),
      [0, 0x7f],
    );
  });

  test('frames come and go at run time', () => {
    const { guest } = viewed('48 c7 04 25 00 00 03 00 05 00 00 00 48 8b 04 25 00 00 03 00 f4'); // [0x30000] = 5; read
    const { frames, memory } = guest.machine;
    const gfn = 0x70000;
    assert.equal(memory.read(gfn * 4096, new Uint8Array(8)), false);
    assert.equal(frames.allocate(gfn), true);
    assert.equal(frames.allocate(gfn), false);
    assert.equal(frames.allocate(0), false);
    memory.data.setBigUint64(BARE.pageTable + DATA * 8, BigInt(gfn * 4096) | 7n, true);
    guest.machine.run(10);
    assert.equal(guest.get('rax'), 5n);
    const bytes = new Uint8Array(8);
    assert.equal(memory.read(gfn * 4096, bytes), true);
    assert.equal(bytes[0], 5);
    assert.deepEqual(memory.regions.at(-1), { gpa: gfn * 4096, size: 4096, readonly: false });
    assert.equal(frames.free(gfn), true);
    assert.equal(frames.free(gfn), false);
    assert.equal(memory.read(gfn * 4096, bytes), false);
  });
});
