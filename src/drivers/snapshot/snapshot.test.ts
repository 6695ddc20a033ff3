import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { contents, dumpedMemory, stateAt } from '../../../test/kit/dump-memory.ts';
import { flattened, kdump } from '../../../test/kit/kdump-file.ts';
import { getRegister, STATE_SIZE } from '../../abi/state.ts';
import { CAPABILITY_NAMES, CapabilityError, type Vcpu } from '../../machine/index.ts';
import { dumpMemory, openSnapshot } from './index.ts';
import { loadZstd } from './zstd.ts';

const PAGE = 4096;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kvmi-snapshot-'));
});
after(() => rmSync(directory, { recursive: true }));

let count = 0;
function fresh(): string {
  return join(directory, `dump-${count++}`);
}

describe('a snapshot as a machine', () => {
  test('has the registers of the vCPUs, and says what it cannot do', async () => {
    const file = fresh();
    const states = [stateAt(0xffff_ffff_8100_0000n), stateAt(0x40_1000n)];
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'elf', states });
    const machine = openSnapshot(file);
    assert.equal(machine.vcpus.length, 2);
    const into = new Uint8Array(STATE_SIZE);
    machine.vcpus[1]!.readState(into);
    assert.deepEqual(into, states[1]);
    assert.equal(getRegister(into, 'rip'), 0x40_1000n);
    const called: Vcpu[] = [];
    machine.attach({
      stop: () => ({ action: 'continue' }),
      request: (vcpu) => {
        called.push(vcpu);
        return undefined;
      },
      closed() {},
    });
    assert.throws(() => machine.attach({} as never), { code: 'E_BUSY' });
    await machine.vcpus[0]!.request();
    assert.deepEqual(called, [machine.vcpus[0]]);
    for (const name of CAPABILITY_NAMES) {
      const isThere = name === 'registers' || name === 'pause';
      if (isThere) assert.equal(machine.capabilities[name], true);
      else assert.match(String(machine.capabilities[name]), /dump/, name);
    }
    assert.throws(() => machine.arm({ kind: 'breakpoint', vcpu: machine.vcpus[0]! }), CapabilityError);
    assert.throws(() => machine.vcpus[0]!.inject(), CapabilityError);
    assert.equal(await machine.memory.write(0, new Uint8Array(1)), false);
    await machine.close();
  });

  test('without registers it says so', async () => {
    const file = fresh();
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'lime' });
    const machine = openSnapshot(file);
    assert.match(String(machine.capabilities.registers), /lime dump has no registers/);
    await machine.close();
  });
});

describe('kdump', () => {
  const pages = new Map([3, 4, 700, 1999].map((page) => [page, new Uint8Array(PAGE).fill(page & 0xff)]));
  const whole = kdump(pages, 2000);

  test('compressed pages are read, others are not there', async () => {
    const half = whole.length >> 1;
    const files = [
      whole,
      flattened(whole, [
        [half, whole.length],
        [0, half + 100],
        [0, PAGE],
      ]),
    ];
    for (const bytes of files) {
      const file = fresh();
      writeFileSync(file, bytes);
      const machine = openSnapshot(file);
      assert.equal(machine.format, 'kdump');
      for (const [page, expected] of pages)
        assert.equal(
          await contents(machine.memory, page * PAGE, PAGE),
          Buffer.from(expected).toString('base64'),
        );
      const across = new Uint8Array(2 * PAGE);
      assert.equal(await machine.memory.read(3 * PAGE, across), true);
      assert.deepEqual([across[0], across[PAGE]], [3, 4]);
      assert.equal(await machine.memory.read(5 * PAGE, new Uint8Array(1)), false);
      await machine.close();
    }
  });

  test('pages are unpacked, however they were packed', async () => {
    for (const flag of [0, 1, 2, 4, 0x20]) {
      const file = fresh();
      writeFileSync(file, kdump(new Map([[7, new Uint8Array(PAGE).fill(9)]]), 100, flag));
      const machine = openSnapshot(file);
      assert.equal(
        await contents(machine.memory, 7 * PAGE, PAGE),
        Buffer.alloc(PAGE, 9).toString('base64'),
        `flag ${flag}`,
      );
      await machine.close();
    }
  });
});

describe('a damaged dump', () => {
  test('that is cut off says so', async () => {
    const file = fresh();
    await dumpMemory({ memory: dumpedMemory() }, file, { format: 'lime' });
    truncateSync(file, 4 << 20);
    const cut = openSnapshot(file);
    assert.equal(cut.missing, (6 << 20) + 32);
    assert.equal(await cut.memory.read(3 << 20, new Uint8Array(PAGE)), true);
    assert.equal(await cut.memory.read(6 << 20, new Uint8Array(PAGE)), false, 'what is missing is not zeros');
    await cut.close();
    truncateSync(file, 12);
    assert.throws(() => openSnapshot(file), { code: 'E_DUMP_DAMAGED' });
    assert.throws(() => openSnapshot(join(directory, 'none')), { code: 'E_DUMP_FILE' });
  });

  test('that is compressed as a whole says what to do', async () => {
    const file = fresh();
    writeFileSync(file, gzipSync(Buffer.alloc(PAGE)));
    assert.throws(() => openSnapshot(file), { code: 'E_DUMP_COMPRESSION', hint: /gunzip/ });
    writeFileSync(file, await loadZstd().compress(Buffer.alloc(PAGE)));
    assert.throws(() => openSnapshot(file), { code: 'E_DUMP_COMPRESSION', hint: /zstd -d/ });
  });
});
