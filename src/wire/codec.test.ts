import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import type { FieldType, Struct } from '../abi/struct.ts';
import {
  ACTION,
  type CommandDefinition,
  type CommandName,
  DIALECTS,
  type Dialect,
  decodeCommand,
  decodeEvent,
  decodeEventReply,
  decodeEventReplyData,
  decodeReply,
  EVENT_REPLY_SIZE,
  type EventDefinition,
  encodeCommand,
  encodeEvent,
  encodeEventReply,
  encodeReply,
  getHeader,
  HEADER_SIZE,
  isEvent,
  MAX_EVENT_MESSAGE,
  ProtocolError,
  ReplyError,
} from './index.ts';

type Values = Record<string, unknown>;

function record<T>(shape: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> {
  return fc.record(shape, { noNullPrototype: true }) as fc.Arbitrary<T>;
}

/** Any value of a field. What a field decodes to tells what it takes. */
function anyValue(type: FieldType<unknown>): fc.Arbitrary<unknown> {
  const sample = type.read(new Uint8Array(type.size), 0);
  if (typeof sample === 'bigint') return fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  if (sample instanceof Uint8Array) return fc.uint8Array({ minLength: type.size, maxLength: type.size });
  if (Array.isArray(sample)) return fc.array(fc.bigInt({ min: 0n, max: 9n }), { minLength: 4, maxLength: 4 });
  if (type.size === 8) return fc.oneof(fc.maxSafeNat(), fc.constant(2 ** 64));
  if (type.name === 's32') return fc.integer();
  return fc.integer({ min: 0, max: 2 ** (8 * type.size) - 1 });
}

function valuesOf(layout: Struct<unknown>): fc.Arbitrary<Values> {
  const fields = layout.fields.filter((field) => !field.type.padding);
  return record<Values>(Object.fromEntries(fields.map((field) => [field.name, anyValue(field.type)])));
}

const bytes = fc.uint8Array({ maxLength: 100 });
const u16 = fc.nat(0xffff);
const gpa = fc.maxSafeNat();

/** Messages with a variable part: what follows the fixed part, and the fields that count it. */
const requestTails: Partial<Record<CommandName, fc.Arbitrary<Values>>> = {
  VM_WRITE_PHYSICAL: bytes.map((data) => ({ data, size: data.length })),
  VCPU_SET_XSAVE: bytes.map((data) => ({ data })),
  VCPU_CHANGE_GFN: bytes.map((data) => ({ data })),
  VCPU_GET_REGISTERS: fc
    .array(fc.integer({ min: 0, max: 0xffffffff }), { maxLength: 30 })
    .map((msrs_idx) => ({ msrs_idx, nmsrs: msrs_idx.length })),
  VM_SET_PAGE_ACCESS: fc
    .array(record({ gpa, access: fc.nat(255), visible: fc.nat(255) }), { maxLength: 20 })
    .map((entries) => ({ entries, count: entries.length })),
  VM_SET_PAGE_WRITE_BITMAP: fc
    .array(record({ gpa, bitmap: fc.integer({ min: 0, max: 0xffffffff }) }), { maxLength: 20 })
    .map((entries) => ({ entries, count: entries.length })),
};

const replyTails: Partial<Record<CommandName, fc.Arbitrary<Values>>> = {
  VM_READ_PHYSICAL: bytes.map((data) => ({ data })),
  VCPU_GET_REGISTERS: fc
    .array(
      record({
        index: fc.integer({ min: 0, max: 0xffffffff }),
        reserved: fc.constant(0),
        data: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      }),
      { maxLength: 20 },
    )
    .map((msrs) => ({ msrs, nmsrs: msrs.length })),
};

function bodies(fixed: Struct<unknown>, tail: fc.Arbitrary<Values> | undefined): fc.Arbitrary<Values> {
  const head = valuesOf(fixed);
  return tail ? fc.tuple(head, tail).map(([first, second]) => ({ ...first, ...second })) : head;
}

/** The same with only the fields that the dialect has. */
function comparable(dialect: Dialect, body: Values): Values {
  if (!Array.isArray(body.entries)) return body;
  const entries = body.entries.map(({ padding: _, visible, ...rest }: Values) =>
    dialect.name === 'v9' && visible !== undefined ? { ...rest, visible } : rest,
  );
  return { ...body, entries };
}

function requestOf(definition: CommandDefinition): fc.Arbitrary<Values> {
  return bodies(definition.request.fixed, requestTails[definition.name]);
}

function encoded(dialect: Dialect, definition: CommandDefinition, vcpu: number, body: Values): Uint8Array {
  return encodeCommand(dialect, definition.name, 1, body as never, vcpu).subarray(HEADER_SIZE);
}

for (const dialect of Object.values(DIALECTS)) {
  describe(`dialect ${dialect.name}`, () => {
    test('every command decodes to what was encoded', () => {
      for (const definition of dialect.commands) {
        const vcpuIn = definition.vcpuIn;
        fc.assert(
          fc.property(requestOf(definition), u16, (body, index) => {
            const vcpu = vcpuIn === 'nowhere' ? 0 : index;
            const message = encodeCommand(dialect, definition.name, index, body as never, vcpu);
            const payload = message.subarray(HEADER_SIZE);
            assert.deepEqual(getHeader(message), { id: definition.id, size: payload.length, seq: index });
            const received = decodeCommand(definition, payload);
            const expected = vcpuIn === 'body' ? { ...body, vcpu } : body;
            assert.deepEqual(
              comparable(dialect, received.body as Values),
              comparable(dialect, expected),
              definition.name,
            );
            assert.deepEqual([received.vcpu, received.padding, received.headerPadding], [vcpu, false, false]);
            assert.equal(received.payloadSize, payload.length);
          }),
          { numRuns: 40 },
        );
      }
    });

    test('every reply decodes to what was encoded', () => {
      for (const definition of dialect.commands) {
        fc.assert(
          fc.property(bodies(definition.reply.fixed, replyTails[definition.name]), u16, (data, seq) => {
            const message = encodeReply(definition, seq, data as never);
            assert.equal(getHeader(message).seq, seq);
            assert.deepEqual(decodeReply(definition, message.subarray(HEADER_SIZE)), data, definition.name);
          }),
          { numRuns: 40 },
        );
      }
    });

    test('every event and its answer decode to what was encoded', () => {
      for (const definition of dialect.events) {
        fc.assert(
          fc.property(valuesOf(definition.data), valuesOf(definition.reply), u16, (data, reply, vcpu) => {
            const into = new Uint8Array(MAX_EVENT_MESSAGE).fill(0xee);
            const length = encodeEvent(dialect, definition as never, into, vcpu, vcpu, data as never);
            const message = into.subarray(0, length);
            const { id } = getHeader(message);
            const received = decodeEvent(dialect, id, vcpu, message.subarray(HEADER_SIZE));
            assert.equal(received.name, definition.name);
            assert.deepEqual(received.data, data, definition.name);
            for (const action of definition.actions) {
              const answer = encodeEventReply(dialect, received, action, reply).subarray(HEADER_SIZE);
              assert.equal(decodeEventReply(answer)!.action, ACTION[action]);
              assert.deepEqual(decodeEventReplyData(definition, answer), { data: reply, padding: false });
            }
          }),
          { numRuns: 30 },
        );
      }
    });

    test('a command that is cut is zero-extended, or its variable part is missing', () => {
      for (const definition of dialect.commands) {
        const headed = definition.vcpuIn === 'header' ? 8 : 0;
        const counted =
          definition.request.tail?.includes('[') && !definition.request.tail.includes('to the end');
        fc.assert(
          fc.property(requestOf(definition), (body) => {
            const whole = encoded(dialect, definition, 3, body);
            const fixed = headed + definition.request.fixed.size;
            for (let size = 0; size <= whole.length; size++) {
              const cut = decodeCommand(definition, whole.slice(0, size));
              const extended = new Uint8Array(Math.max(size, fixed));
              extended.set(whole.subarray(0, size));
              const same = decodeCommand(definition, extended);
              assert.deepEqual(cut.body, same.body, `${definition.name} cut to ${size}`);
              assert.equal(cut.vcpu, same.vcpu);
              if (counted && size >= fixed) assert.equal(cut.body === undefined, size < whole.length);
            }
          }),
          { numRuns: 3 },
        );
      }
    });

    test('bytes behind a command are ignored', () => {
      for (const definition of dialect.commands) {
        if (definition.request.tail?.includes('to the end')) continue;
        fc.assert(
          fc.property(requestOf(definition), bytes, (body, more) => {
            const whole = encoded(dialect, definition, 3, body);
            const longer = Uint8Array.from([...whole, ...more]);
            assert.deepEqual(decodeCommand(definition, longer).body, decodeCommand(definition, whole).body);
          }),
          { numRuns: 5 },
        );
      }
    });

    test('every byte of a command is a field or padding that is noticed', () => {
      for (const definition of dialect.commands) {
        const headed = definition.vcpuIn === 'header' ? 8 : 0;
        const size = headed + definition.request.fixed.size;
        const zero = decodeCommand(definition, new Uint8Array(size));
        for (let at = 0; at < size; at++) {
          const payload = new Uint8Array(size + 512 * 16);
          payload[at] = 1;
          const { vcpu, body, padding, headerPadding } = decodeCommand(definition, payload.slice(0, size));
          const full = decodeCommand(definition, payload);
          const changed =
            vcpu !== zero.vcpu || JSON.stringify(body, text) !== JSON.stringify(zero.body, text);
          const where = `${definition.name}, byte ${at}`;
          assert.equal(Number(changed) + Number(padding) + Number(headerPadding), 1, where);
          assert.equal(headerPadding, headed > 0 && at >= 2 && at < 8, where);
          assert.equal(full.padding, padding, where);
        }
      }
    });

    test('every byte of an entry of a page access list is a field or padding that is noticed', () => {
      const definition = dialect.command('VM_SET_PAGE_ACCESS')! as unknown as CommandDefinition;
      const one = encoded(dialect, definition, 0, { view: 0, count: 1, entries: [{ gpa: 0, access: 0 }] });
      for (let at = 8; at < 24; at++) {
        const payload = one.slice();
        payload[at] = 1;
        const { entries } = decodeCommand(definition, payload).body as { entries: Values[] };
        const { padding, ...fields } = entries[0]!;
        const changed = Object.values(fields).some((value) => value !== 0);
        assert.equal(Number(changed) + Number(padding), 1, `byte ${at}`);
      }
    });

    test('every byte of an answer is a field or padding that is noticed', () => {
      for (const definition of dialect.events.filter((event) => event.actions.length > 0)) {
        const size = EVENT_REPLY_SIZE + definition.reply.size;
        const zero = [
          decodeEventReply(new Uint8Array(size)),
          decodeEventReplyData(definition, new Uint8Array(size)),
        ];
        for (let at = 0; at < size; at++) {
          const payload = new Uint8Array(size);
          payload[at] = 1;
          const head = decodeEventReply(payload)!;
          const rest = decodeEventReplyData(definition, payload)!;
          const where = `${definition.name}, byte ${at}`;
          // The event byte of an answer is not looked at.
          if (at === 9) assert.deepEqual([head, rest], zero, where);
          else assert.notDeepEqual([head, rest], zero, where);
          const padding = head.headerPadding || head.padding || rest.padding;
          const isPadding = (at >= 2 && at < 8) || (at >= 10 && at < 16) || inPadding(definition, at);
          assert.equal(padding, isPadding, where);
        }
      }
    });

    test('an answer may be cut to 16 bytes, and must not be longer than the event takes', () => {
      for (const definition of dialect.events.filter((event) => event.actions.length > 0)) {
        const answer = encodeEventReply(dialect, { definition, seq: 1, vcpu: 2 }, 'continue', {
          new_val: 5n,
        }).subarray(HEADER_SIZE);
        for (let size = 0; size <= answer.length; size++) {
          const cut = answer.slice(0, size);
          assert.equal(decodeEventReply(cut) === undefined, size < 16, `${definition.name} cut to ${size}`);
          if (size >= 16)
            assert.ok(decodeEventReplyData(definition, cut), `${definition.name} cut to ${size}`);
        }
        const short = decodeEventReplyData(definition, answer.slice(0, 16))!;
        if (definition.name === 'CR') assert.equal(short.data.new_val, 0n, 'without a value, 0 is written');
        assert.equal(decodeEventReplyData(definition, Uint8Array.from([...answer, 0])), undefined);
      }
    });

    test('an event that is cut inside its common block is refused; its data is zero-extended', () => {
      for (const definition of dialect.events) {
        const into = new Uint8Array(MAX_EVENT_MESSAGE);
        const length = encodeEvent(dialect, definition as never, into, 1, 2, { ...nothing } as never);
        const { id } = getHeader(into);
        const payload = into.slice(HEADER_SIZE, length);
        const common = payload.length - definition.data.size;
        for (let size = 0; size <= payload.length; size++) {
          const cut = payload.slice(0, size);
          if (!isEvent(dialect, id, cut)) assert.ok(size < common, `${definition.name} cut to ${size}`);
          else if (size < common) assert.throws(() => decodeEvent(dialect, id, 1, cut), ProtocolError);
          else
            assert.deepEqual(
              decodeEvent(dialect, id, 1, cut).data,
              decodeEvent(dialect, id, 1, payload).data,
            );
        }
      }
    });

    test('random payloads decode, or fail with a ProtocolError or the error that they carry', () => {
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 700 }), fc.nat(70), (payload, id) => {
          const definition = dialect.commandById(id);
          if (definition) {
            decodeCommand(definition, payload);
            expectErrors(() => decodeReply(definition, payload), ProtocolError, ReplyError);
          }
          if (isEvent(dialect, id, payload)) {
            expectErrors(() => decodeEvent(dialect, id, 1, payload), ProtocolError);
          }
          for (const event of dialect.events) decodeEventReplyData(event, payload);
          decodeEventReply(payload);
        }),
        { numRuns: 3000 },
      );
    });

    test('ids are looked up both ways', () => {
      for (const command of dialect.commands) {
        assert.equal(dialect.commandById(command.id), command);
        assert.equal(dialect.command(command.name), command);
      }
      for (const event of dialect.events) {
        assert.equal(dialect.eventById(event.id), event);
        assert.equal(dialect.event(event.name), event);
      }
      assert.equal(dialect.commandById(0xffff), undefined);
      assert.equal(dialect.eventById(0xffff), undefined);
    });
  });
}

/** All data of all events at once, as zeros. */
const nothing = {
  gpa: 0,
  insn_len: 0,
  cr: 0,
  old_value: 0n,
  new_value: 0n,
  nr: 0,
  error_code: 0,
  address: 0n,
  xcr: 0,
  descriptor: 0,
  write: 0,
  msr: 0,
  gva: 0n,
  access: 0,
  view: 0,
  failed: 0,
  function: 0,
  index: 0,
  insn_length: 0,
  err: 0,
  msg_seq: 0,
  msg_id: 0,
};

function text(_: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `${value}n` : value instanceof Uint8Array ? [...value] : value;
}

function inPadding(definition: EventDefinition, at: number): boolean {
  const offset = at - EVENT_REPLY_SIZE;
  return definition.reply.fields.some(
    ({ type, offset: start }) => type.padding && offset >= start && offset < start + type.size,
  );
}

function expectErrors(run: () => unknown, ...kinds: (new (...args: never[]) => Error)[]): void {
  try {
    run();
  } catch (error) {
    assert.ok(
      kinds.some((kind) => error instanceof kind),
      String(error),
    );
  }
}

test('a command that does not fit a message says how large it is', () => {
  const entries = Array.from({ length: 512 }, () => ({ gpa: 0, access: 0 }));
  assert.throws(() => encodeCommand(DIALECTS.v12, 'VM_SET_PAGE_ACCESS', 1, { count: 512, entries }), {
    code: 'E_MESSAGE_SIZE',
    message: /8200 bytes/,
  });
});

test('an action that the event does not have is refused', () => {
  const definition = DIALECTS.v12.event('CR')!;
  assert.throws(() => encodeEventReply(DIALECTS.v12, { definition, seq: 1, vcpu: 0 }, 'retry'), {
    code: 'E_NOT_IN_DIALECT',
  });
});
