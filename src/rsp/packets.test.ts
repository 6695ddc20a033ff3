import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { encodePacket, hex, type Incoming, MAX_PACKET, PacketReader, unhex } from './packets.ts';

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');
const data = (incoming: Incoming): string | undefined =>
  incoming.kind === 'packet' ? text(incoming.data) : undefined;

describe('packets', () => {
  test('a packet as the manual has it', () => {
    assert.equal(text(encodePacket(Buffer.from('OK'))), '$OK#9a');
    assert.equal(text(encodePacket(Buffer.from('}'))), '$}]#da');
  });

  test('whatever is encoded is read again, however the stream is cut', () => {
    const packets = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 5 });
    fc.assert(
      fc.property(packets, fc.integer({ min: 1, max: 40 }), (all, cut) => {
        const stream = Buffer.concat(all.map(encodePacket));
        const reader = new PacketReader();
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
      fc.property(fc.uint8Array({ maxLength: 1000 }), (bytes) => {
        const reader = new PacketReader();
        reader.feed(bytes);
        // Whatever state that left: the end of a packet ends it.
        reader.feed(Buffer.from('##00'));
        reader.feed(Buffer.from('$#zz'));
        assert.equal(
          reader
            .feed(encodePacket(Buffer.from('g')))
            .map(data)
            .at(-1),
          'g',
        );
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

  test('digits', () => {
    assert.equal(hex(Uint8Array.of(0, 255)), '00ff');
    assert.deepEqual([...(unhex('00fF') ?? [])], [0, 255]);
    assert.equal(unhex('0'), undefined);
    assert.equal(unhex('0g'), undefined);
  });
});
