import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { getU32, putU32 } from '../../src/abi/bytes.ts';
import { kvmFlavour } from '../../src/drivers/kvm/flavour.ts';
import { attachKvm } from '../../src/drivers/kvm/index.ts';
import { statusNumber } from '../../src/system/proc.ts';
import { missing } from '../kvm/kit.ts';
import { MicroVm } from '../kvm/micro-vm.ts';
import type { GuestAction, RunningSubject, Subject } from './subject.ts';
import { isDocumented } from './support.ts';

/* The layout of actions.S. */
const MAILBOX = 0x20000;
const DONE = 4;
const RESULT = 8;
const TEST_PAGE = 0x30000;
const MSR_MISC_FEATURES = 0x140;

/** The numbers that the guest knows actions by; what it cannot do is nothing that stock KVM reports. */
const ACTIONS: { readonly [A in GuestAction]?: number } = {
  noop: 1,
  'take-exception': 1,
  int3: 2,
  msr: 3,
  'write-page': 4,
  'read-page': 5,
  'execute-page': 6,
};

async function start(vcpus: number, unsafe: boolean): Promise<RunningSubject> {
  const vmm = await MicroVm.start({ vcpus });
  const machine = attachKvm({ pid: vmm.pid, unsafe });
  const { memory } = machine;
  const word = (at: number): number => {
    const bytes = new Uint8Array(4);
    assert.ok(memory.read(MAILBOX + at, bytes), 'the VMM has memory');
    return getU32(bytes, 0);
  };
  const emulated = kvmFlavour() === 'pvm';
  return {
    machine,
    guest: {
      testPage: { gpa: TEST_PAGE, gva: BigInt(TEST_PAGE) },
      msr: MSR_MISC_FEATURES,
      // movb $0x42, %es:0
      writeLength: 6,
      ...(emulated && {
        lateWrites:
          'the instruction emulator of KVM, which runs this guest, has carried a write out when it is stopped',
      }),
      cannot: (action) => (ACTIONS[action] ? undefined : 'nothing that stock KVM reports'),
      async act(action) {
        const before = word(DONE);
        const number = new Uint8Array(4);
        putU32(number, 0, ACTIONS[action]!);
        memory.write(MAILBOX, number);
        while (word(DONE) === before) await delay(1);
        return BigInt(word(RESULT));
      },
      isDebugged: async () => threadsOf(vmm.pid).some((tid) => statusNumber(tid, 'TracerPid') !== 0),
      hold: () => vmm.tell('hold'),
      release: () => vmm.tell('release'),
      addVcpu: () => vmm.tell('addVcpu'),
    },
    async close() {
      await machine.close();
      await vmm.stop();
    },
  };
}

function threadsOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).map(Number);
}

/** A device manager of our own whose guest runs on this host's /dev/kvm, attached to. */
export function kvmSubject(vcpus: number, unsafe = false): Subject {
  const details = [
    kvmFlavour().toUpperCase(),
    ...(vcpus === 1 ? [] : [`${vcpus} vCPUs`]),
    ...(unsafe ? ['--unsafe'] : []),
  ];
  const driver = `kvm (${details.join(', ')})`;
  return {
    driver,
    unavailable: () => missing('gcc', 'objcopy'),
    start: () => start(vcpus, unsafe),
    fresh: true,
    ...(vcpus === 1 && !unsafe && isDocumented(driver) && { documented: true }),
  };
}
