import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import * as v7 from '../../test/wire/v7.ts';
import * as v9 from '../../test/wire/v9.ts';
import * as v12 from '../../test/wire/v12.ts';
import { type CommandVector, type EventVector, parseHex, SEQ, state } from '../../test/wire/vector.ts';
import {
  ACTION,
  type CommandName,
  DIALECTS,
  type Dialect,
  type DialectName,
  decodeCommand,
  decodeEvent,
  decodeEventReply,
  decodeEventReplyData,
  decodeReply,
  type EventName,
  encodeCommand,
  encodeErrorReply,
  encodeEvent,
  encodeEventReply,
  encodeReply,
  eventSize,
  getHeader,
  HEADER_SIZE,
  isEvent,
  MAX_EVENT_MESSAGE,
  ReplyError,
  stateOffset,
} from './index.ts';

const vectors: Record<DialectName, { commands: readonly CommandVector[]; events: readonly EventVector[] }> = {
  v7,
  v9,
  v12,
};

function assertBytes(actual: Uint8Array, hex: string, what: string): void {
  assert.equal(Buffer.from(actual).toString('hex'), Buffer.from(parseHex(hex)).toString('hex'), what);
}

/** Entries of an array decode with a note about their padding. */
function withoutPaddingNotes(body: object): object {
  if (!('entries' in body)) return body;
  const entries = (body.entries as { padding?: boolean }[]).map(({ padding, ...rest }) => {
    assert.ok(!padding, 'an entry has padding');
    return rest;
  });
  return { ...body, entries };
}

function checkCommand(dialect: Dialect, vector: CommandVector): void {
  const { name, vcpu = 0, body, request, data, reply } = vector;
  const definition = dialect.command(name);
  assert.ok(definition, `${name} is not in the table`);
  assertBytes(encodeCommand(dialect, name, SEQ, body, vcpu), request, 'encoded request');
  const message = parseHex(request);
  const payload = message.subarray(HEADER_SIZE);
  assert.deepEqual(getHeader(message), { id: definition.id, size: payload.length, seq: SEQ });
  const received = decodeCommand(definition, payload);
  assert.deepEqual(withoutPaddingNotes(received.body!), body);
  assert.deepEqual([received.vcpu, received.headerPadding, received.padding], [vcpu, false, false]);

  assertBytes(encodeReply(definition, SEQ, data), reply, 'encoded reply');
  const replyMessage = parseHex(reply);
  const replyPayload = replyMessage.subarray(HEADER_SIZE);
  assert.deepEqual(getHeader(replyMessage), { id: definition.id, size: replyPayload.length, seq: SEQ });
  assert.deepEqual(decodeReply(definition, replyPayload), data);
}

function checkEvent(dialect: Dialect, { name, vcpu, data, event, answer }: EventVector): void {
  const definition = dialect.event(name);
  assert.ok(definition, `${name} is not in the table`);
  const named = definition as typeof definition & { name: EventName };
  const expected = parseHex(event);
  const bare = name === 'UNHOOK';
  const message = new Uint8Array(MAX_EVENT_MESSAGE);
  if (!bare) message.set(parseHex(state), stateOffset(dialect));
  const length = encodeEvent(dialect, named, message, SEQ, vcpu, data);
  assertBytes(message.subarray(0, length), event, 'encoded event');
  assert.equal(eventSize(dialect, definition), expected.length - HEADER_SIZE);

  const { id } = getHeader(expected);
  const payload = expected.subarray(HEADER_SIZE);
  assert.ok(isEvent(dialect, id, payload));
  const received = decodeEvent(dialect, id, SEQ, payload);
  assert.deepEqual([received.name, received.seq, received.vcpu], [name, SEQ, vcpu]);
  assert.deepEqual(received.data, data);
  if (!bare) assertBytes(received.state, state, 'the state block');

  if (!answer) {
    assert.deepEqual(definition.actions, []);
    return;
  }
  const { action, data: replyData = {}, hex } = answer;
  assertBytes(encodeEventReply(dialect, received, action, replyData), hex, 'encoded answer');
  const answerMessage = parseHex(hex);
  assert.equal(getHeader(answerMessage).id, dialect.messages.eventReply);
  const answerPayload = answerMessage.subarray(HEADER_SIZE);
  assert.deepEqual(decodeEventReply(answerPayload), {
    vcpu,
    headerPadding: false,
    action: ACTION[action],
    padding: false,
  });
  assert.deepEqual(decodeEventReplyData(definition, answerPayload), { data: replyData, padding: false });
}

for (const name of Object.keys(vectors) as DialectName[]) {
  const dialect = DIALECTS[name];
  const { commands, events } = vectors[name];
  describe(`dialect ${name}: bytes of`, () => {
    for (const vector of commands) {
      test(`${vector.name} and its reply`, () => checkCommand(dialect, vector));
    }
    for (const vector of events) {
      test(`the ${vector.name} event and its answer`, () => checkEvent(dialect, vector));
    }
    test('every message of the table', () => {
      const names = (rows: readonly { name: string }[]) => [...new Set(rows.map((row) => row.name))].sort();
      assert.deepEqual(names(commands), names(dialect.commands));
      assert.deepEqual(names(events), names(dialect.events));
    });
  });
}

describe('examples of the specification', () => {
  const { v9: nine, v12: twelve, v7: seven } = DIALECTS;
  const message = (dialect: Dialect, name: CommandName, seq: number, body: object, vcpu = 0) =>
    encodeCommand(dialect, name, seq, body as never, vcpu);
  const reply = (dialect: Dialect, name: CommandName, seq: number, data: object) =>
    encodeReply(dialect.command(name)!, seq, data as never);
  const version = { version: 1, max_msg_size: 8184, singlestep: 1 };

  const rows: readonly [title: string, bytes: Uint8Array, hex: string][] = [
    ['v12 GET_VERSION', message(twelve, 'GET_VERSION', 1, {}), '02 00 00 00 01 00 00 00'],
    [
      'its reply',
      reply(twelve, 'GET_VERSION', 1, version),
      '02 00 18 00 01 00 00 00 | 00 00 00 00 00 00 00 00 | 01 00 00 00 F8 1F 00 00 | 01 00 00 00 00 00 00 00',
    ],
    [
      'the reply to an unknown id',
      encodeErrorReply(0xffff, 7, 1000),
      'FF FF 08 00 07 00 00 00 | 18 FC FF FF 00 00 00 00',
    ],
    [
      'v12 PAUSE',
      message(twelve, 'VM_PAUSE_VCPU', 3, { wait: 1, vcpu: 0 }),
      '10 00 08 00 03 00 00 00 | 00 00 01 00 00 00 00 00',
    ],
    ['its reply', reply(twelve, 'VM_PAUSE_VCPU', 3, {}), '10 00 08 00 03 00 00 00 | 00 00 00 00 00 00 00 00'],
    [
      'v12 PAUSE event, its first bytes',
      encoded(twelve, 'PAUSE', 1).subarray(0, 18),
      '01 00 28 02 01 00 00 00 | 01 00 00 00 00 00 00 00 | 20 02',
    ],
    [
      'its answer',
      answerTo(twelve, 'PAUSE', 1),
      '01 00 10 00 01 00 00 00 | 00 00 00 00 00 00 00 00 | 00 01 00 00 00 00 00 00',
    ],
    ['v12 UNHOOK event', encoded(twelve, 'UNHOOK', 2), '00 00 08 00 02 00 00 00 | 00 00 00 00 00 00 00 00'],
    ['v9 GET_VERSION', message(nine, 'GET_VERSION', 1, {}), '01 00 00 00 01 00 00 00'],
    [
      'its reply',
      reply(nine, 'GET_VERSION', 1, { ...version, max_msg_size: 0 }),
      '01 00 18 00 01 00 00 00 | 00 00 00 00 00 00 00 00 | 01 00 00 00 00 00 00 00 | 01 00 00 00 00 00 00 00',
    ],
    [
      'v9 PAUSE',
      message(nine, 'VM_PAUSE_VCPU', 3, { wait: 1 }),
      '09 00 10 00 03 00 00 00 | 00 00 00 00 00 00 00 00 | 01 00 00 00 00 00 00 00',
    ],
    ['its reply', reply(nine, 'VM_PAUSE_VCPU', 3, {}), '09 00 08 00 03 00 00 00 | 00 00 00 00 00 00 00 00'],
    [
      'v9 PAUSE event, its first bytes',
      encoded(nine, 'PAUSE', 1).subarray(0, 16),
      '00 00 20 02 01 00 00 00 | 20 02 00 00 01 00 00 00',
    ],
    [
      'its answer',
      answerTo(nine, 'PAUSE', 1),
      '00 00 10 00 01 00 00 00 | 00 00 00 00 00 00 00 00 | 00 01 00 00 00 00 00 00',
    ],
    [
      'v9 UNHOOK event',
      encoded(nine, 'UNHOOK', 2),
      `00 00 20 02 02 00 00 00 | 20 02 00 00 00 00 00 00 | ${'00'.repeat(536)}`,
    ],
    [
      'v7 GET_VERSION reply',
      reply(seven, 'GET_VERSION', 1, { ...version, max_msg_size: 0, spp: 0, vmfunc: 0, eptp: 0, ve: 0 }),
      `02 00 18 00 01 00 00 00 | ${'00'.repeat(8)} | 01 00 00 00 00 00 00 00 | 00 00 00 00 01 00 00 00`,
    ],
  ];

  function encoded(dialect: Dialect, name: EventName, seq: number): Uint8Array {
    const into = new Uint8Array(MAX_EVENT_MESSAGE);
    const definition = dialect.event(name)!;
    return into.subarray(0, encodeEvent(dialect, definition as never, into, seq, 0, {} as never));
  }

  function answerTo(dialect: Dialect, name: EventName, seq: number): Uint8Array {
    return encodeEventReply(dialect, { definition: dialect.event(name)!, seq, vcpu: 0 }, 'continue');
  }

  for (const [title, bytes, hex] of rows) test(title, () => assertBytes(bytes, hex, title));
});

describe('payload sizes of the specification', () => {
  const sizes: readonly [name: EventName, v7: number, v9: number | undefined, v12: number | undefined][] = [
    ['PAUSE', 544, 544, 552],
    ['HYPERCALL', 544, 544, 552],
    ['UNHOOK', 544, 544, 8],
    ['BREAKPOINT', 560, 560, 568],
    ['TRAP', 560, 560, 568],
    ['CR', 568, 568, 576],
    ['MSR', 568, 568, 576],
    ['PF', 568, 568, 576],
    ['XSETBV', 544, 568, 576],
    ['DESCRIPTOR', 552, 552, 560],
    ['SINGLESTEP', 552, 552, 560],
    ['CPUID', 560, undefined, undefined],
  ];
  const replies: readonly [name: EventName, v7: number, v9: number, v12: number][] = [
    ['PAUSE', 16, 16, 16],
    ['CR', 24, 24, 24],
    ['MSR', 24, 24, 24],
    ['PF', 288, 16, 16],
  ];
  const order = ['v7', 'v9', 'v12'] as const;
  for (const [name, ...expected] of sizes) {
    test(`${name} event`, () => {
      const actual = order.map((dialect) => {
        const definition = DIALECTS[dialect].event(name);
        return definition && eventSize(DIALECTS[dialect], definition);
      });
      assert.deepEqual(actual, expected);
    });
  }
  for (const [name, ...expected] of replies) {
    test(`answer to ${name}`, () => {
      const actual = order.map((dialect) => {
        const definition = DIALECTS[dialect].event(name)!;
        const answer = encodeEventReply(DIALECTS[dialect], { definition, seq: 1, vcpu: 0 }, 'continue');
        return answer.length - HEADER_SIZE;
      });
      assert.deepEqual(actual, expected);
    });
  }
});

describe('error replies', () => {
  test('carry the negated number, and decode to an error that names it', () => {
    const numbers = [
      ['KVM_EPERM', 1],
      ['KVM_ENOENT', 2],
      ['KVM_E2BIG', 7],
      ['KVM_EAGAIN', 11],
      ['KVM_ENOMEM', 12],
      ['KVM_EFAULT', 14],
      ['KVM_EBUSY', 16],
      ['KVM_EINVAL', 22],
      ['KVM_EOPNOTSUPP', 95],
      ['KVM_ENOSYS', 1000],
    ] as const;
    const definition = DIALECTS.v12.command('VM_GET_INFO')!;
    for (const [name, errno] of numbers) {
      const message = encodeErrorReply(definition.id, 5, errno);
      assert.equal(message.length, HEADER_SIZE + 8);
      assert.equal(Buffer.from(message).readInt32LE(HEADER_SIZE), -errno);
      assert.throws(
        () => decodeReply(definition, message.subarray(HEADER_SIZE)),
        (error) => error instanceof ReplyError && error.errno === errno && error.errnoName === name,
      );
    }
  });
});
