import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import {
  encodePacket,
  PacketDecoder,
  parseStopReply,
  registerFromHex,
  registerToHex,
  threadId,
} from './gdb-codec.ts';

/** Any string of bytes. */
const payloads = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes).toString('latin1'));

/** Cuts `bytes` into pieces of the given sizes, the rest last. */
function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const pieces: Buffer[] = [];
  let at = 0;
  for (const size of sizes) {
    pieces.push(bytes.subarray(at, at + size));
    at += size;
  }
  return [...pieces, bytes.subarray(at)];
}

describe('GDB packets', () => {
  test('have the checksum and the escapes of the protocol', () => {
    assert.equal(encodePacket('OK'), '$OK#9a');
    assert.equal(encodePacket('a#b'), `$a}\x03b#${checksum('a}\x03b')}`);
    assert.deepEqual(new PacketDecoder().push(Buffer.from('$0* #7a+')), ['0000']);
  });

  test('come out as they went in, however the stream is cut, with acknowledgements in between', () => {
    fc.assert(
      fc.property(fc.array(payloads, { maxLength: 5 }), fc.array(fc.nat(40)), (sent, sizes) => {
        const stream = Buffer.from(sent.map((payload) => `+${encodePacket(payload)}`).join('-'), 'latin1');
        const decoder = new PacketDecoder();
        assert.deepEqual(
          cut(stream, sizes).flatMap((piece) => decoder.push(piece)),
          sent,
        );
      }),
    );
  });

  test('that are hostile are refused, and never grow without bound', () => {
    const refused = (bytes: string | Buffer) =>
      assert.throws(() => new PacketDecoder().push(Buffer.from(bytes as string)), { code: 'E_GDB_PROTOCOL' });
    refused('$OK#00');
    refused('$*~#a8');
    refused(`$${'a'.repeat(70_000)}`);
    const bomb = `a${'*~'.repeat(2000)}`;
    refused(`$${bomb}#${checksum(bomb)}`);
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        try {
          new PacketDecoder().push(Buffer.from(bytes));
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'E_GDB_PROTOCOL');
        }
      }),
    );
  });

  test('stop replies say who and why', () => {
    assert.deepEqual(parseStopReply('T05thread:p01.02;'), { signal: 5, vcpu: 1, watchpoint: false });
    assert.deepEqual(parseStopReply('T05thread:p1.1;watch:ffff;'), { signal: 5, vcpu: 0, watchpoint: true });
    assert.deepEqual(parseStopReply('S02'), { signal: 2, vcpu: undefined, watchpoint: false });
    for (const other of ['OK', '', 'W00', 'T', 'E01', 'Tzz']) assert.equal(parseStopReply(other), undefined);
    assert.equal(threadId(15), 'p1.10');
  });

  test('register values are little-endian, of the size of the register', () => {
    assert.equal(registerToHex(0x1234n, 4), '34120000');
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }), (value) => {
        assert.equal(registerFromHex(registerToHex(value, 16)), value);
      }),
    );
    for (const wrong of ['', 'xxxxxxxx', '123', 'E01']) {
      assert.throws(() => registerFromHex(wrong), { code: 'E_GDB_PROTOCOL' });
    }
  });
});

function checksum(text: string): string {
  const sum = [...text].reduce((total, character) => total + character.charCodeAt(0), 0);
  return (sum & 0xff).toString(16).padStart(2, '0');
}
