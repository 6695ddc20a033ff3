import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { LineSplitter, parseQmpMessage } from './qmp.ts';

describe('QMP', () => {
  test('lines come out whole, however the stream is cut', () => {
    fc.assert(
      fc.property(fc.array(fc.json()), fc.array(fc.nat(30)), (values, sizes) => {
        const lines = values.map((value) => value.replaceAll('\n', ' ').trimEnd());
        const stream = Buffer.from(lines.map((line) => `${line}\r\n`).join(''));
        const splitter = new LineSplitter();
        const got: string[] = [];
        let at = 0;
        for (const size of [...sizes, stream.length]) {
          got.push(...splitter.push(stream.subarray(at, at + size)));
          at += size;
        }
        assert.deepEqual(got, lines);
      }),
    );
  });

  test('a line without end is refused', () => {
    const splitter = new LineSplitter(100);
    splitter.push(Buffer.alloc(60, 'a'));
    assert.throws(() => splitter.push(Buffer.alloc(60, 'a')), { code: 'E_QMP_PROTOCOL' });
  });

  test('messages are sorted by what they are', () => {
    assert.equal(parseQmpMessage('{"QMP": {"version": {}}}').kind, 'greeting');
    assert.deepEqual(parseQmpMessage('{"event":"STOP","timestamp":{}}'), {
      kind: 'event',
      event: { name: 'STOP', data: {} },
    });
    assert.deepEqual(parseQmpMessage('{"return":{},"id":3}'), { kind: 'return', id: 3, value: {} });
    assert.deepEqual(parseQmpMessage('{"id":4,"error":{"class":"GenericError","desc":"no"}}'), {
      kind: 'error',
      id: 4,
      errorClass: 'GenericError',
      text: 'no',
    });
  });

  test('what is not QMP is refused', () => {
    for (const line of [
      '',
      'x',
      '1',
      '[]',
      'null',
      '{}',
      '{"event":1}',
      '{"error":1}',
      '{"event":"A","data":[]}',
    ]) {
      assert.throws(() => parseQmpMessage(line), { code: 'E_QMP_PROTOCOL' }, line);
    }
  });
});
