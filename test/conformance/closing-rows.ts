import assert from 'node:assert/strict';
import { getS32 } from '../../src/abi/bytes.ts';
import { HEADER_SIZE, putHeader } from '../../src/wire/index.ts';
import { patiently } from '../kit/peer.ts';
import { EINVAL, type Rig, type Row } from './rig.ts';

/** A row after which the connection is closed; the VM must be all right, and hookable again. */
function closes(
  title: string,
  options: Pick<Row, 'dialects' | 'needs' | 'actions'>,
  provoke: (rig: Rig) => Promise<void>,
): Row {
  return {
    rows: 'x',
    title: `closes the connection: ${title}`,
    ...options,
    async run(rig) {
      await rig.hookAll();
      await provoke(rig);
      await rig.expectClosed(title);
      assert.ok(
        rig.log.some((line) => /^error: .*\(00112233-4455-6677-8899-aabbccddeeff\): /.test(line)),
        `the log says why, with the UUID: ${rig.log.join('; ')}`,
      );
      await rig.unhook();
      await rig.hookAll();
      assert.equal((await rig.peer.command('VM_GET_INFO', {})).err, 0, 'hooked again');
      await rig.unhook();
    },
  };
}

function message(id: number, seq: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + payload.length);
  putHeader(bytes, 0, id, payload.length, seq);
  bytes.set(payload, HEADER_SIZE);
  return bytes;
}

/** An event reply with everything right but what `change` does. */
async function replyToPause(
  rig: Rig,
  change: (payload: Uint8Array) => Uint8Array,
  seqOffset = 0,
): Promise<void> {
  assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
  const event = await rig.peer.event('PAUSE');
  const id = rig.dialect.messages.eventReply;
  rig.peer.send(message(id, event.seq + seqOffset, change(new Uint8Array(16))));
}

function set(at: number, value: number): (payload: Uint8Array) => Uint8Array {
  return (payload) => {
    payload[at] = value;
    return payload;
  };
}

const PAUSES = { needs: ['pause'] } as const;

/** What ends the connection, and what only looks like it. */
export const CLOSING_ROWS: readonly Row[] = [
  closes('a message of 8185 bytes', {}, async ({ peer }) => {
    const header = new Uint8Array(HEADER_SIZE);
    putHeader(header, 0, 2, 8185, 1);
    peer.send(header);
  }),
  closes('VM_WRITE_PHYSICAL shorter than it announces', {}, async ({ peer, dialect, guest }) => {
    const payload = new Uint8Array(20);
    const view = new DataView(payload.buffer);
    view.setBigUint64(0, BigInt(guest.testPage.gpa), true);
    view.setUint16(8, 5, true);
    peer.send(message(dialect.command('VM_WRITE_PHYSICAL')!.id, 1, payload));
  }),
  closes('VM_SET_PAGE_ACCESS shorter than it announces', { dialects: ['v12'] }, async ({ peer }) => {
    peer.send(message(20, 1, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0)));
  }),
  closes(
    'VCPU_GET_REGISTERS with indices beyond the payload',
    { dialects: ['v9'], ...PAUSES },
    async ({ peer }) => {
      peer.send(message(11, 1, Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0)));
    },
  ),
  closes('VCPU_SET_XSAVE without a vCPU header', { dialects: ['v9'], ...PAUSES }, async ({ peer }) => {
    peer.send(message(20, 1, new Uint8Array(0)));
  }),
  closes('padding in the vCPU header', { dialects: ['v7'], ...PAUSES }, async ({ peer }) => {
    peer.send(message(6, 1, Uint8Array.of(0, 0, 1, 0, 0, 0, 0, 0)));
  }),
  closes('a pause that is not allowed', { dialects: ['v7'], ...PAUSES }, async (rig) => {
    await rig.introspection.event({ allow: 0, id: rig.eventId('PAUSE') });
    rig.peer.send(message(7, 1, new Uint8Array(16)));
  }),
  closes('data is asked for while replies are off', { dialects: ['v7'] }, async ({ peer }) => {
    peer.send(message(27, 1, Uint8Array.of(0, 1, 0, 0, 0, 0, 0, 0)));
    peer.send(message(5, 2, new Uint8Array(0)));
  }),
  closes('an unknown command while replies are off', { dialects: ['v7'] }, async ({ peer }) => {
    peer.send(message(27, 1, Uint8Array.of(0, 1, 0, 0, 0, 0, 0, 0)));
    peer.send(message(200, 2, new Uint8Array(0)));
  }),
  closes('an event reply that nobody waits for', {}, async ({ peer, dialect }) => {
    peer.send(message(dialect.messages.eventReply, 1, new Uint8Array(16)));
  }),
  closes('an event reply with the wrong sequence number', PAUSES, (rig) =>
    replyToPause(rig, (reply) => reply, 1),
  ),
  closes('an event reply below 16 bytes', PAUSES, (rig) => replyToPause(rig, (reply) => reply.slice(0, 15))),
  closes('an event reply that is too long', PAUSES, (rig) => replyToPause(rig, () => new Uint8Array(17))),
  closes('padding in an event reply', PAUSES, (rig) => replyToPause(rig, set(10, 1))),
  closes('an action that the event does not have', PAUSES, (rig) => replyToPause(rig, set(8, 1))),
  closes('an action that does not exist', PAUSES, (rig) => replyToPause(rig, set(8, 9))),
  {
    rows: 'x',
    title: 'an event reply for a vCPU that does not exist is answered, and the vCPU waits on',
    needs: ['pause'],
    async run(rig) {
      await rig.hookAll();
      assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
      const event = await rig.peer.event('PAUSE');
      const reply = await rig.peer.raw(rig.dialect.messages.eventReply, set(0, 99)(new Uint8Array(16)));
      assert.equal(reply.id, rig.dialect.messages.eventReply);
      assert.equal(reply.payload.length, 8);
      assert.equal(getS32(reply.payload, 0), EINVAL);
      rig.peer.reply(event, 'continue');
      assert.equal((await rig.peer.command('VCPU_GET_INFO', {}, 0)).err, 0);
      await rig.unhook();
    },
  },
  {
    rows: 'x',
    title: 'UNHOOK lets a vCPU go that waits for a reply',
    needs: ['pause'],
    actions: ['noop'],
    async run(rig) {
      await rig.hookAll();
      assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
      await rig.peer.event('PAUSE');
      await rig.unhook();
      await patiently(rig.peer.closed, 'the peer to see the hang-up');
      await patiently(rig.guest.act('noop'), 'the guest to go on');
    },
  },
  {
    rows: 'x',
    title: 'a tool that hangs up during an event lets the vCPU go',
    needs: ['pause'],
    actions: ['noop'],
    async run(rig) {
      await rig.hookAll();
      assert.equal((await rig.peer.command('VM_PAUSE_VCPU', { wait: 0 }, 0)).err, 0);
      await rig.peer.event('PAUSE');
      rig.peer.channel.shutdown();
      await patiently(rig.guest.act('noop'), 'the guest to go on');
      await rig.unhook();
    },
  },
];
