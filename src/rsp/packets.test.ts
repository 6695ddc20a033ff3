import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { encodePacket, type Incoming, MAX_PACKET, PacketReader } from './packets.ts';

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');
const data = (incoming: Incoming): string =>
  incoming.kind === 'packet' ? text(incoming.data) : incoming.kind;

describe('packets', () => {
  test('a packet as the manual has it', () => {
    assert.equal(text(encodePacket(Buffer.from('OK'))), '$OK#9a');
    assert.equal(text(encodePacket('}')), '$}]#da');
  });

  test('whatever is encoded is read again, however the stream is cut', () => {
    const packets = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 5 });
    fc.assert(
      fc.property(packets, fc.integer({ min: 1, max: 40 }), fc.boolean(), (all, cut, repeats) => {
        const stream = Buffer.concat(all.map(encodePacket));
        const reader = new PacketReader({ repeats });
        const found: Incoming[] = [];
        for (let at = 0; at < stream.length; at += cut)
          found.push(...reader.feed(stream.subarray(at, at + cut)));
        assert.deepEqual(
          found.map(data),
          all.map((each) => text(each)),
        );
      }),
    );
  });

  test('any bytes: never an exception, and the next packet is read', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 1000 }), fc.boolean(), (bytes, repeats) => {
        const reader = new PacketReader({ repeats });
        reader.feed(bytes);
        // Whatever state that left: the end of a packet ends it.
        reader.feed(Buffer.from('  ##00'));
        reader.feed(Buffer.from('$#zz'));
        assert.equal(reader.feed(encodePacket('g')).map(data).at(-1), 'g');
      }),
    );
  });

  test('a wrong checksum, acknowledgements and interrupts', () => {
    const found = new PacketReader().feed(Buffer.from('+$g#68-\x03$g#67$a$g#67'));
    assert.deepEqual(
      found.map(({ kind }) => kind),
      ['ack', 'corrupt', 'nak', 'interrupt', 'packet', 'corrupt', 'packet'],
    );
  });

  test('a packet that never ends takes no memory, and is told once', () => {
    const reader = new PacketReader();
    assert.deepEqual(reader.feed(Buffer.from('$')), []);
    const found = reader.feed(new Uint8Array(MAX_PACKET + 5000).fill(0x61));
    assert.deepEqual(found, [{ kind: 'oversized' }]);
    assert.deepEqual(reader.feed(Buffer.from('#00$g#67')), []);
  });

  test('a byte that a stub repeats; what repeats nothing is corrupt, what grows without end is too large', () => {
    const stub = (bytes: string) => new PacketReader({ repeats: true }).feed(Buffer.from(bytes)).map(data);
    assert.deepEqual(stub('$0* #7a+'), ['0000', 'ack']);
    assert.deepEqual(stub('$*~#a8'), ['corrupt']);
    assert.deepEqual(stub(`$a${'*~'.repeat(2000)}`), ['oversized']);
    assert.deepEqual(new PacketReader().feed(Buffer.from('$0* #7a')).map(data), ['0* ']);
  });
});
