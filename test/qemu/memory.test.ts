import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openQemu, QemuMachine } from '../../src/drivers/qemu/index.ts';
import { openQmp } from '../../src/drivers/qemu/open-qmp.ts';
import type { QmpTransport } from '../../src/drivers/qemu/qmp.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';

const MIB = 2 ** 20;
/** Two stretches that the guest does not change while it is paused. */
const STRETCHES = [
  [0x1000, 0x9000],
  [16 * MIB + 12, 3 * MIB + 7],
] as const;

/** A monitor whose QEMU seems to be on another host: its vCPU threads are not found here. */
function faraway(qmp: QmpTransport): QmpTransport {
  return {
    where: qmp.where,
    peer: undefined,
    async execute(command, args) {
      const answer = await qmp.execute(command, args);
      if (command !== 'query-cpus-fast') return answer;
      return (answer as object[]).map((cpu) => ({ ...cpu, 'thread-id': 0 }));
    },
    isServer: (pid) => qmp.isServer(pid),
    hmp: (line, cpuIndex) => qmp.hmp(line, cpuIndex),
    onEvent: (listener) => qmp.onEvent(listener),
    onClosed: (listener) => qmp.onClosed(listener),
    claim: () => qmp.claim(),
    release: () => qmp.release(),
    close: () => qmp.close(),
  };
}

const WAYS = [
  { way: 'shared memory', backend: 'memfd', open: openQemu },
  { way: '/proc/PID/mem', backend: 'private', open: openQemu },
  {
    way: "QEMU's monitor",
    backend: 'private',
    open: async (address: { qmp: string }) =>
      QemuMachine.open(faraway(await openQmp(address)), address, () => {}),
  },
] as const;

for (const { way, backend, open } of WAYS) {
  describe(`guest memory through ${way}`, { skip: whyNoLinuxGuest() ?? false }, () => {
    let vm: LinuxGuest;
    let machine: QemuMachine;

    before(async () => {
      vm = await LinuxGuest.boot({ backend });
      machine = await open({ qmp: vm.qmp });
    });
    after(async () => {
      await machine?.close();
      await vm?.kill();
    });

    test('is what QEMU shows of it', async () => {
      assert.match(machine.memoryAccess.join(), new RegExp(way.replace('PID', String(vm.pid))));
      await vm.monitor.execute('stop');
      for (const [gpa, size] of STRETCHES) {
        const bytes = new Uint8Array(size);
        assert.equal(await machine.memory.read(gpa, bytes), true);
        const file = join(vm.directory, 'shown');
        await vm.monitor.execute('pmemsave', { val: gpa, size, filename: file });
        assert.equal(hash(bytes), hash(readFileSync(file)), `${size} bytes at ${gpa.toString(16)}`);
      }
      await vm.monitor.execute('cont');
    });

    test('covers all RAM, with no hole in it, and nothing else', async () => {
      const { regions } = machine.memory;
      const total = regions.reduce((sum, { size }) => sum + size, 0);
      assert.equal(total, 256 * MIB);
      assert.equal(await machine.memory.read(256 * MIB, new Uint8Array(1)), false);
      assert.equal(await machine.memory.read(0xfee00000, new Uint8Array(4)), false, 'the APIC');
      assert.equal(await machine.memory.write(0xfffffff0, new Uint8Array(1)), false, 'firmware');
    });

    test('is written, also across pages, and the guest sees it', async () => {
      const [low] = machine.memory.regions;
      const gpa = low!.size - 0x2000 + 0xff0;
      const before = new Uint8Array(32);
      await machine.memory.read(gpa, before);
      const pattern = Uint8Array.from({ length: 32 }, (_, i) => i + 1);
      assert.equal(await machine.memory.write(gpa, pattern), true);
      const shown = await vm.monitor.hmp(`xp /32bx 0x${gpa.toString(16)}`);
      const bytes = [...shown.matchAll(/ 0x(\w\w)/g)].map((match) => Number.parseInt(match[1]!, 16));
      assert.deepEqual(bytes, [...pattern]);
      const back = new Uint8Array(32);
      await machine.memory.read(gpa, back);
      assert.deepEqual(back, pattern);
      await machine.memory.write(gpa, before);
      const readonly = machine.memory.regions.find((region) => region.readonly)!;
      assert.equal(await machine.memory.write(readonly.gpa, new Uint8Array(1)), false, 'ROM');
      await vm.nextTicks(2);
    });
  });
}

function hash(bytes: Uint8Array): string {
  return createHash('sha1').update(bytes).digest('hex');
}
