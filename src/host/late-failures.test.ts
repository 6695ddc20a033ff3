import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Peer, patiently } from '../../test/kit/peer.ts';
import { failsLater, ScriptedMachine } from '../../test/kit/scripted-machine.ts';
import { KVM_ERRNO } from '../abi/errno.ts';
import type { Trap } from '../machine/index.ts';
import { loopback } from '../transport/index.ts';
import { DIALECTS } from '../wire/index.ts';
import { Introspection } from './introspection.ts';

async function hook(machine: ScriptedMachine): Promise<{ peer: Peer; introspection: Introspection }> {
  const [host, tool] = loopback();
  const peer = new Peer(tool, DIALECTS.v12);
  const introspection = new Introspection(machine);
  assert.equal(await introspection.hook({ socket: host }), 0);
  await introspection.command({ allow: 1, id: -1 });
  await introspection.event({ allow: 1, id: -1 });
  return { peer, introspection };
}

const gfnsOf = (traps: readonly Trap[]): number[] =>
  traps.filter((trap) => trap.kind === 'page').map(({ gfn }) => gfn);

test('VM_SET_PAGE_ACCESS applies every entry although arming the first one fails later', async () => {
  const machine = new ScriptedMachine();
  const { peer, introspection } = await hook(machine);
  machine.script.arm = async (trap) => {
    if (trap.kind === 'page' && trap.gfn === 1) await failsLater('E_BUSY');
    if (trap.kind === 'page' && trap.gfn === 3) await failsLater('E_NO_MEMORY');
  };
  const entries = [1, 2, 3, 4].map((gfn) => ({ gpa: gfn * 0x1000, access: 5 }));
  const { err } = await peer.command('VM_SET_PAGE_ACCESS', { count: entries.length, entries });
  assert.deepEqual(gfnsOf(machine.armed), [2, 4], 'the other entries are in effect');
  assert.equal(err, -KVM_ERRNO.KVM_EBUSY, 'the answer is the first error');
  assert.equal((await peer.command('GET_VERSION', {})).err, 0, 'the connection goes on');
  await introspection.unhook();
});

test('a vCPU whose single-stepping cannot be ended does not keep the others from being released', async () => {
  const machine = new ScriptedMachine({ vcpus: 2 });
  const { peer, introspection } = await hook(machine);
  assert.equal((await peer.command('VCPU_CONTROL_SINGLESTEP', { enable: 1 }, 0)).err, 0);
  await peer.command('VM_PAUSE_VCPU', { vcpu: 1, wait: 0 }, 1);
  await peer.event('PAUSE');
  machine.script.disarm = () => failsLater('E_BUSY');
  await patiently(introspection.unhook(), 'UNHOOK while vCPU 1 waits for its answer');
});

test('a request to a vCPU that fails later ends the connection, not the process', async () => {
  const machine = new ScriptedMachine();
  const { peer, introspection } = await hook(machine);
  machine.vcpus[0]!.request = () => failsLater('E_BUSY');
  void peer.command('VM_PAUSE_VCPU', { vcpu: 0, wait: 0 }, 0).catch(() => {});
  await patiently(peer.closed, 'the connection to be closed');
  await introspection.unhook();
});
