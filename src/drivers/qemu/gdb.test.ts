import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { encodePacket as encode, PacketReader } from '../../rsp/packets.ts';
import { parseRegisters } from '../../rsp/target-description.ts';
import { GdbClient } from './gdb.ts';

const TARGET = `<?xml version="1.0"?><target><!-- <reg name="x" bitsize="64"/> -->
  <feature name="core">
    <reg name="rax" bitsize="64"/><!-- not <reg name="rbx" bitsize="64"/> -->
    <reg name="eflags" bitsize="32" regnum="7"/>
    <reg name="rip"
         bitsize="64"/>
  </feature></target>`;

/** A stub that answers each packet as `answer` says; undefined: not at all. */
async function withStub<T>(
  directory: string,
  answer: (packet: string, socket: Socket) => string | undefined,
  use: (path: string) => Promise<T>,
): Promise<T> {
  const path = join(directory, 'stub');
  const server: Server = createServer((socket) => {
    const reader = new PacketReader();
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      for (const incoming of reader.feed(chunk)) {
        if (incoming.kind !== 'packet') continue;
        const reply = answer(Buffer.from(incoming.data).toString('latin1'), socket);
        if (reply !== undefined) socket.write(reply, 'latin1');
      }
    });
  });
  server.listen(path);
  await once(server, 'listening');
  try {
    return await use(path);
  } finally {
    server.close();
  }
}

const encodePacket = (data: string): string => Buffer.from(encode(data)).toString('latin1');

function wellBehaved(packet: string): string | undefined {
  if (packet.startsWith('qSupported'))
    return `${encodePacket('T02thread:p01.01;')}+${encodePacket('PacketSize=1000')}`;
  if (packet === '?') return encodePacket('T05thread:p01.01;');
  if (packet === 'qC') return encodePacket('QCp01.01');
  if (packet.startsWith('qXfer')) return encodePacket(`l${TARGET}`);
  return encodePacket('OK');
}

describe('the GDB client', () => {
  let directory: string;
  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-gdb-'));
  });
  after(() => rmSync(directory, { recursive: true }));

  const connect = (path: string) => GdbClient.connect({ path }, path);

  test('numbers registers by the target description, without its comments', () => {
    assert.deepEqual(
      [...parseRegisters([TARGET])],
      [
        ['rax', { number: 0, size: 8, offset: 0 }],
        ['eflags', { number: 7, size: 4, offset: 8 }],
        ['rip', { number: 8, size: 8, offset: 12 }],
      ],
    );
    assert.throws(() => parseRegisters(['<target/>']), { code: 'E_GDB_PROTOCOL' });
    assert.throws(() => parseRegisters(['<reg name="a" bitsize="99999"/>']), { code: 'E_GDB_PROTOCOL' });
  });

  test('synchronises over a stop that nobody asked for', async () => {
    await withStub(directory, wellBehaved, async (path) => {
      const gdb = await connect(path);
      assert.equal(gdb.register('rip').number, 8);
      gdb.close();
    });
  });

  test('selects the vCPU in each write, as a stop selects another', async () => {
    const packets: string[] = [];
    const stub = (packet: string) => {
      if (packet !== 'qC') packets.push(packet);
      if (packet === 'c') return encodePacket('T05thread:p01.02;');
      return packet.startsWith('p') ? encodePacket('0100000000000000') : wellBehaved(packet);
    };
    await withStub(directory, stub, async (path) => {
      const gdb = await connect(path);
      await Promise.all([gdb.readRegister(0, 'rip'), gdb.readRegister(0, 'rip')]);
      const stopped = gdb.nextStop();
      gdb.resume('c');
      assert.equal((await stopped).vcpu, 1);
      await gdb.readRegister(0, 'rip');
      assert.deepEqual(packets.slice(-6), ['Hgp1.1', 'p8', 'p8', 'c', 'Hgp1.1', 'p8']);
      gdb.close();
    });
  });

  test('an answer that is not OK, or empty, is an error of the write', async () => {
    for (const answer of ['', 'E22']) {
      const stub = (packet: string) => (packet.startsWith('P') ? encodePacket(answer) : wellBehaved(packet));
      await withStub(directory, stub, async (path) => {
        const gdb = await connect(path);
        await assert.rejects(gdb.writeRegister(0, 'rip', 1n), { code: 'E_GDB_REFUSED' });
        gdb.close();
      });
    }
  });

  test('a stub that says nothing is busy, one that hangs up or talks rubbish is an error', async () => {
    const started = Date.now();
    await withStub(
      directory,
      () => undefined,
      (path) => assert.rejects(connect(path), { code: 'E_BUSY' }),
    );
    assert.ok(Date.now() - started < 2000);
    await withStub(
      directory,
      (_packet, socket) => {
        socket.destroy();
        return undefined;
      },
      (path) => assert.rejects(connect(path), { code: 'E_GDB_CLOSED' }),
    );
    await withStub(
      directory,
      () => '$OK#00',
      (path) => assert.rejects(connect(path), { code: 'E_GDB_PROTOCOL' }),
    );
    await assert.rejects(connect(join(directory, 'nothing')), { code: 'E_GDB_CONNECT' });
  });

  test('a stub that goes away ends whatever waits', async () => {
    const stub = (packet: string, socket: Socket) => {
      if (packet !== 'c') return wellBehaved(packet);
      socket.destroy();
      return undefined;
    };
    await withStub(directory, stub, async (path) => {
      const gdb = await connect(path);
      const stopped = gdb.nextStop();
      gdb.resume('c');
      await assert.rejects(stopped, { code: 'E_GDB_CLOSED' });
      await assert.rejects(gdb.command('g'), { code: 'E_GDB_CLOSED' });
      await assert.rejects(gdb.nextStop(), { code: 'E_GDB_CLOSED' });
    });
  });
});
