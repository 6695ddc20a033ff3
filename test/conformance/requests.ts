import assert from 'node:assert/strict';
import { ERRNO } from '../../src/abi/errno.ts';
import { IOCTL_TABLES, kvmIntrospectionFeature, kvmIntrospectionHook } from '../../src/abi/ioctl.ts';
import { Introspection } from '../../src/host/index.ts';
import { loopback } from '../../src/transport/index.ts';
import { patiently } from '../kit/peer.ts';
import { hooked, type Rig, type Row, UUID } from './rig.ts';

const ALL = { allow: 1, id: -1 };
const NEWER = ['v9', 'v12'] as const;

function hookArgument(fd: number, padding: number): Uint8Array {
  const bytes = new Uint8Array(kvmIntrospectionHook.size);
  kvmIntrospectionHook.write(bytes, 0, { fd, padding, uuid: UUID });
  return bytes;
}

function featureArgument(allow: number, id: number): Uint8Array {
  const bytes = new Uint8Array(kvmIntrospectionFeature.size);
  kvmIntrospectionFeature.write(bytes, 0, { allow, id });
  return bytes;
}

async function expectRequests(rig: Rig): Promise<void> {
  const { introspection, dialect } = rig;
  const { requests, capability } = IOCTL_TABLES[dialect.name];
  assert.equal(introspection.checkExtension(capability), 1, 'the capability');
  assert.equal(introspection.checkExtension(1000), 0, 'another capability');
  assert.equal(await introspection.ioctl(requests.HOOK), -ERRNO.EFAULT, 'HOOK without an argument');
  assert.equal(await introspection.ioctl(requests.HOOK, hookArgument(-1, 1)), -ERRNO.EINVAL, 'padding');
  assert.equal(await introspection.ioctl(requests.HOOK, hookArgument(-1, 0)), -ERRNO.EINVAL, 'fd -1');
  assert.equal(await rig.hook(), 0, 'HOOK after an EINVAL');
  assert.equal(await introspection.ioctl(requests.HOOK, hookArgument(-1, 1)), -ERRNO.EINVAL, 'padding first');
  assert.equal(await introspection.ioctl(requests.HOOK, hookArgument(-1, 0)), -ERRNO.EEXIST, 'hooked first');
  assert.equal(await introspection.ioctl(requests.COMMAND, featureArgument(1, -1)), 0, 'COMMAND');
  assert.equal(await introspection.ioctl(requests.EVENT, featureArgument(1, -1)), 0, 'EVENT');
  assert.equal(await introspection.ioctl(requests.EVENT), -ERRNO.EFAULT, 'EVENT without an argument');
  assert.equal(await introspection.ioctl(requests.UNHOOK), 0, 'UNHOOK');
  assert.equal(await introspection.ioctl(0xae80), -ERRNO.ENOTTY, 'KVM_RUN is none of ours');
}

/** The requests of the device manager: hook, unhook, permissions. */
export const REQUEST_ROWS: readonly Row[] = [
  { rows: '1, 4-7', title: 'the ioctl face and the order of its checks', run: expectRequests },
  {
    rows: '2, 3',
    title: 'COMMAND, EVENT and PREUNHOOK before HOOK answer EFAULT',
    async run({ introspection }) {
      assert.equal(await introspection.command(ALL), -ERRNO.EFAULT);
      assert.equal(await introspection.event(ALL), -ERRNO.EFAULT);
      assert.equal(await introspection.preUnhook(), -ERRNO.EFAULT);
    },
  },
  {
    rows: '5-7, 85',
    title: 'hook, hook again, unhook, unhook again, hook after unhook',
    async run(rig) {
      assert.equal(await rig.introspection.hook({ padding: 1 }), -ERRNO.EINVAL, 'padding 1');
      assert.equal(await rig.introspection.hook({ fd: -1 }), -ERRNO.EINVAL, 'fd -1');
      assert.equal(await rig.hook(), 0, 'HOOK');
      assert.equal(await rig.hook(), -ERRNO.EEXIST, 'a second HOOK');
      await rig.unhook();
      await patiently(rig.peer.closed, 'the peer to see the hang-up');
      assert.equal(await rig.introspection.unhook(), 0, 'UNHOOK of what is not hooked');
      assert.equal(await rig.hook(), 0, 'HOOK after UNHOOK');
      await rig.unhook();
    },
  },
  {
    rows: 'x',
    title: 'a machine that somebody else holds answers HOOK with EBUSY',
    async run(rig) {
      const other = new Introspection(rig.machine, { dialect: rig.dialect.name });
      const [socket] = loopback();
      assert.equal(await rig.hook(), 0, 'HOOK');
      assert.equal(await other.hook({ socket }), -ERRNO.EBUSY, 'HOOK by somebody else');
      await rig.unhook();
      assert.equal(await other.hook({ socket }), 0, 'HOOK when it is free');
      assert.equal(await other.unhook(), 0, 'UNHOOK');
    },
  },
  {
    rows: 'x',
    title: 'everything is EPERM while introspection is disabled',
    async run({ machine, dialect }) {
      const introspection = new Introspection(machine, { enabled: false, dialect: dialect.name });
      const { capability, requests, hidesWhenDisabled } = IOCTL_TABLES[dialect.name];
      for (const request of Object.values(requests)) {
        assert.equal(await introspection.ioctl(request), -ERRNO.EPERM);
      }
      assert.equal(introspection.checkExtension(capability), hidesWhenDisabled ? 0 : 1);
    },
  },
  {
    rows: 'x',
    title: 'a peer that hangs up leaves the VM hooked until UNHOOK',
    async run(rig) {
      await rig.hookAll();
      rig.peer.channel.shutdown();
      await patiently(rig.introspection.disconnected, 'the receiver to end');
      assert.equal(await rig.hook(), -ERRNO.EEXIST, 'HOOK after a hang-up');
      await rig.unhook();
      assert.equal(await rig.hook(), 0, 'HOOK after UNHOOK');
      await rig.unhook();
    },
  },
  hooked('8', 'the three commands that are always allowed cannot be taken away', {}, async (rig) => {
    for (const name of ['GET_VERSION', 'VM_CHECK_COMMAND', 'VM_CHECK_EVENT'] as const) {
      const { id } = rig.dialect.command(name)!;
      assert.equal(await rig.introspection.command({ allow: 0, id }), -ERRNO.EPERM, name);
      assert.equal(await rig.introspection.command({ allow: 1, id }), 0, name);
    }
    assert.equal(await rig.introspection.command({ allow: 0, id: -1 }), 0);
    assert.equal((await rig.peer.command('GET_VERSION', {})).err, 0);
    assert.notEqual((await rig.peer.command('VM_GET_INFO', {})).err, 0, 'VM_GET_INFO is not allowed now');
  }),
  hooked('9-12', 'permissions for all ids, and out-of-range arguments', { dialects: NEWER }, async (rig) => {
    const { introspection, dialect } = rig;
    for (const request of ['command', 'event'] as const) {
      assert.equal(await introspection[request]({ allow: 2, id: -1 }), -ERRNO.EINVAL, 'allow 2');
      assert.equal(await introspection[request]({ allow: 0, id: -1 }), 0);
      assert.equal(await introspection[request](ALL), 0);
      assert.equal(await introspection[request]({ allow: 1, id: -2 }), -ERRNO.EINVAL, 'id -2');
    }
    const { commands, events } = dialect.ioctlLimit;
    assert.equal(await introspection.command({ allow: 1, id: commands! }), -ERRNO.EINVAL, 'command limit');
    assert.equal(await introspection.command({ allow: 1, id: commands! - 1 }), 0, 'last command');
    assert.equal(await introspection.event({ allow: 1, id: events! }), -ERRNO.EINVAL, 'event limit');
    assert.equal(await introspection.event({ allow: 1, id: events! - 1 }), 0, 'last event');
  }),
  hooked('24, 25', 'PREUNHOOK sends the UNHOOK event to a tool that asked for it', {}, async (rig) => {
    assert.equal(await rig.introspection.preUnhook(), -ERRNO.ENOENT, 'not enabled');
    const body = { event_id: rig.eventId('UNHOOK'), enable: 1 };
    assert.equal((await rig.peer.command('VM_CONTROL_EVENTS', body)).err, 0);
    assert.equal(await rig.introspection.preUnhook(), 0);
    const event = await rig.peer.event('UNHOOK');
    assert.equal(event.size, rig.dialect.name === 'v12' ? 8 : 544);
    assert.ok(
      event.state.every((byte) => byte === 0),
      'the register block of an UNHOOK event is zero',
    );
    assert.equal((await rig.peer.command('VM_CONTROL_EVENTS', { ...body, enable: 0 })).err, 0);
    assert.equal(await rig.introspection.preUnhook(), -ERRNO.ENOENT, 'disabled again');
  }),
];
