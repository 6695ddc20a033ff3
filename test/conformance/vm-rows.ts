import assert from 'node:assert/strict';
import { memoryEnd, PAGE_SIZE } from '../../src/machine/index.ts';
import { EINVAL, ENOENT, ENOSYS, EPERM, hooked, type Row } from './rig.ts';

const NEWER = ['v9', 'v12'] as const;

/** Sets one byte of a payload. */
function withByte(at: number, value: number): (payload: Uint8Array) => Uint8Array {
  return (payload) => {
    payload[at] = value;
    return payload;
  };
}

/** Commands that the receiver carries out. */
export const VM_ROWS: readonly Row[] = [
  hooked('13, 14', 'an unknown message is answered -KVM_ENOSYS', {}, async ({ peer }) => {
    const { payload } = await peer.raw(0xffff, new Uint8Array(0));
    assert.deepEqual([...payload], [0x18, 0xfc, 0xff, 0xff, 0, 0, 0, 0]);
    const { payload: again } = await peer.raw(0xfffe, new Uint8Array(64));
    assert.equal(Buffer.from(again).readInt32LE(0), ENOSYS);
  }),
  hooked('15', 'GET_VERSION', {}, async ({ peer, dialect, machine }) => {
    const { err, data, size } = await peer.command('GET_VERSION', {});
    assert.equal(err, 0);
    assert.equal(size, 24);
    assert.equal(data.version, 1);
    assert.equal(data.max_msg_size, dialect.name === 'v12' ? 8184 : 0);
    assert.equal(data.singlestep, machine.capabilities.singlestep === true ? 1 : 0);
  }),
  hooked('16-18, 22', 'VM_CHECK_COMMAND', { dialects: NEWER }, async ({ peer, dialect, introspection }) => {
    const { id } = dialect.command('VM_GET_INFO')!;
    assert.equal((await peer.command('VM_CHECK_COMMAND', { id })).err, 0);
    assert.equal((await peer.command('VM_CHECK_COMMAND', { id: 0xffff })).err, ENOENT);
    await introspection.command({ allow: 0, id });
    assert.equal((await peer.command('VM_CHECK_COMMAND', { id })).err, EPERM);
    assert.equal((await peer.command('VM_GET_INFO', {})).err, EPERM);
    await introspection.command({ allow: 1, id });
    assert.equal((await peer.command('VM_GET_INFO', {})).err, 0);
    for (const at of [2, 3, 4, 7]) {
      const { err } = await peer.commandBytes('VM_CHECK_COMMAND', withByte(at, 1), { id });
      assert.equal(err, EINVAL, `padding at ${at}`);
    }
  }),
  hooked('19-22', 'VM_CHECK_EVENT', { dialects: NEWER }, async ({ peer, introspection, dialect }) => {
    const { id } = dialect.event('UNHOOK')!;
    assert.equal((await peer.command('VM_CHECK_EVENT', { id: 0xffff })).err, ENOENT);
    assert.equal((await peer.command('VM_CHECK_EVENT', { id })).err, 0);
    await introspection.event({ allow: 0, id });
    assert.equal((await peer.command('VM_CHECK_EVENT', { id })).err, EPERM);
    const { err } = await peer.commandBytes('VM_CHECK_EVENT', withByte(2, 1), { id });
    assert.equal(err, EINVAL, 'padding');
  }),
  hooked(
    'x',
    'VM_CHECK_COMMAND and VM_CHECK_EVENT of v7 know no ENOENT',
    { dialects: ['v7'] },
    async (rig) => {
      const { peer } = rig;
      assert.equal((await peer.command('VM_CHECK_COMMAND', { id: 5 })).err, 0);
      assert.equal((await peer.command('VM_CHECK_COMMAND', { id: 12 })).err, EPERM, 'a hole in the table');
      assert.equal((await peer.command('VM_CHECK_COMMAND', { id: 0xffff })).err, EINVAL);
      assert.equal((await peer.command('VM_CHECK_EVENT', { id: 13 })).err, 0);
      assert.equal((await peer.command('VM_CHECK_EVENT', { id: 0xffff })).err, EINVAL);
    },
  ),
  hooked('23', 'VM_GET_INFO', {}, async ({ peer, machine }) => {
    const { err, data, size } = await peer.command('VM_GET_INFO', {});
    assert.equal(err, 0);
    assert.equal(size, 24);
    assert.equal(data.vcpu_count, machine.vcpus.length);
  }),
  hooked('26-29', 'VM_CONTROL_EVENTS', {}, async (rig) => {
    const { peer, introspection, dialect } = rig;
    const event_id = rig.eventId('UNHOOK');
    const control = async (id: number, enable: number): Promise<number> =>
      (await peer.command('VM_CONTROL_EVENTS', { event_id: id, enable })).err;
    assert.equal(await control(event_id, 1), 0);
    assert.equal(await control(event_id, 0), 0);
    assert.equal(await control(event_id, 2), dialect.name === 'v7' ? 0 : EINVAL, 'enable 2');
    assert.equal(await control(0xffff, 1), EINVAL, 'unknown event');
    assert.equal(await control(rig.eventId('BREAKPOINT'), 1), EINVAL, 'an event of a vCPU');
    for (const at of [3, 4, 7]) {
      const { err } = await peer.commandBytes('VM_CONTROL_EVENTS', withByte(at, 1), { event_id, enable: 1 });
      assert.equal(err, EINVAL, `padding at ${at}`);
    }
    await introspection.event({ allow: 0, id: event_id });
    assert.equal(await control(event_id, 1), EPERM, 'not allowed');
  }),
  hooked('30, 31', 'write and read a page', { needs: ['memory-write'] }, async ({ peer, guest, machine }) => {
    const { gpa } = guest.testPage;
    const data = new Uint8Array(PAGE_SIZE).fill(1);
    assert.equal((await peer.command('VM_WRITE_PHYSICAL', { gpa, size: PAGE_SIZE, data })).err, 0);
    const seen = new Uint8Array(PAGE_SIZE);
    assert.equal(await machine.memory.read(gpa, seen), true);
    assert.deepEqual(seen, data, 'the machine has the bytes');
    const read = await peer.command('VM_READ_PHYSICAL', { gpa, size: PAGE_SIZE });
    assert.equal(read.size, 8 + PAGE_SIZE);
    assert.deepEqual(new Uint8Array(read.data.data), data, 'the tool reads them back');
    const part = Uint8Array.of(1, 2, 3);
    assert.equal((await peer.command('VM_WRITE_PHYSICAL', { gpa: gpa + 9, size: 3, data: part })).err, 0);
    const small = await peer.command('VM_READ_PHYSICAL', { gpa: gpa + 8, size: 5 });
    assert.deepEqual([...small.data.data], [1, 1, 2, 3, 1]);
  }),
  hooked('31-34', 'reads and writes that KVMI refuses', {}, async ({ peer, guest, machine }) => {
    const { gpa } = guest.testPage;
    const none = new Uint8Array(0);
    const read = async (at: number, size: number): Promise<number> =>
      (await peer.command('VM_READ_PHYSICAL', { gpa: at, size })).err;
    assert.equal(await read(gpa, 0), EINVAL, 'size 0');
    assert.equal(await read(gpa, PAGE_SIZE + 1), EINVAL, 'more than a page');
    assert.equal(await read(gpa + 1, PAGE_SIZE), EINVAL, 'across a page');
    assert.equal((await peer.command('VM_WRITE_PHYSICAL', { gpa, size: 0, data: none })).err, EINVAL);
    const beyond = memoryEnd(machine.memory.regions) * PAGE_SIZE;
    const highest = machine.memory.regions.at(-1)!;
    const nowhere = Math.max(beyond, highest.gpa + highest.size);
    assert.equal(await read(nowhere, 1), ENOENT);
    const byte = Uint8Array.of(1);
    const write = await peer.command('VM_WRITE_PHYSICAL', { gpa: nowhere, size: 1, data: byte });
    assert.equal(write.err, ENOENT);
    assert.equal(await read(2 ** 60, 1), ENOENT, 'beyond what an address can be');
  }),
  hooked('31', 'padding of READ and WRITE', { dialects: NEWER }, async ({ peer, guest }) => {
    const { gpa } = guest.testPage;
    for (const at of [10, 11, 12, 15]) {
      const read = await peer.commandBytes('VM_READ_PHYSICAL', withByte(at, 1), { gpa, size: 1 });
      assert.equal(read.err, EINVAL, `READ, padding at ${at}`);
      const body = { gpa, size: 1, data: Uint8Array.of(0) };
      const write = await peer.commandBytes('VM_WRITE_PHYSICAL', withByte(at, 1), body);
      assert.equal(write.err, EINVAL, `WRITE, padding at ${at}`);
    }
  }),
  hooked('55, 56', 'VM_CONTROL_CLEANUP', { dialects: NEWER }, async ({ peer }) => {
    assert.equal((await peer.command('VM_CONTROL_CLEANUP', { enable: 2 })).err, EINVAL);
    assert.equal((await peer.command('VM_CONTROL_CLEANUP', { enable: 1 })).err, 0);
    assert.equal((await peer.command('VM_CONTROL_CLEANUP', { enable: 0 })).err, 0);
    for (const at of [1, 2, 4]) {
      const { err } = await peer.commandBytes('VM_CONTROL_CLEANUP', withByte(at, 1), { enable: 0 });
      assert.equal(err, EINVAL, `padding at ${at}`);
    }
  }),
  hooked('64', 'VM_GET_MAX_GFN', { dialects: ['v7', 'v9'] }, async ({ peer, machine }) => {
    const { err, data, size } = await peer.command('VM_GET_MAX_GFN', {});
    assert.equal(err, 0);
    assert.equal(size, 16);
    assert.equal(data.gfn, memoryEnd(machine.memory.regions));
  }),
  hooked('x', 'short messages are zero-extended', {}, async ({ peer, dialect }) => {
    const cut = (length: number) => (payload: Uint8Array) => payload.slice(0, length);
    const { id } = dialect.command('GET_VERSION')!;
    assert.equal((await peer.commandBytes('VM_CHECK_COMMAND', cut(2), { id })).err, 0);
    const empty = await peer.commandBytes('VM_READ_PHYSICAL', cut(0), { gpa: 0, size: 1 });
    assert.equal(empty.err, EINVAL, 'size 0 of an empty READ');
    const long = (payload: Uint8Array) => Buffer.concat([payload, Buffer.alloc(100, 1)]);
    assert.equal((await peer.commandBytes('VM_CHECK_COMMAND', long, { id })).err, 0, 'longer is ignored');
  }),
  hooked('x', 'requests in one write are answered in order', {}, async ({ peer }) => {
    const answers = await Promise.all(Array.from({ length: 200 }, () => peer.command('VM_GET_INFO', {})));
    assert.ok(answers.every(({ err }) => err === 0));
  }),
];
