import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KVM, KVM_MEM, kvmMemoryRegion } from '../../src/abi/kvm.ts';
import { putRequest, type SlotRequest } from '../../src/drivers/kvm/slots/slot-request.ts';
import { SlotTable } from '../../src/run/intercepted-slots.ts';
import { check, libc } from '../../src/system/libc.ts';
import { missing } from './kit.ts';

/* What memory requests lead to, against the kernel itself: each is made on a real VM, too. */

const PAGE = 4096;
const KNOWN_FLAGS = KVM_MEM.LOG_DIRTY_PAGES | KVM_MEM.READONLY;
const READ_WRITE = 3;
const SHARED_ANONYMOUS = 0x21;
const O_RDWR = 2;

const memory = missing() ? 0 : Number(libc().mmap(0, 64 * PAGE, READ_WRITE, SHARED_ANONYMOUS, -1, 0));
const pages = (most: number) => fc.integer({ min: 0, max: most }).map((page) => page * PAGE);
const unaligned = fc.integer({ min: 1, max: 8 * PAGE });
const request: fc.Arbitrary<SlotRequest> = fc.record({
  // 0x10001 is a slot of system management mode.
  slot: fc.constantFrom(0, 1, 2, 3, 0x10001),
  flags: fc.constantFrom(0, 0, 0, KVM_MEM.LOG_DIRTY_PAGES, KVM_MEM.READONLY, KVM_MEM.GUEST_MEMFD, 1 << 20),
  gpa: fc.oneof(
    { weight: 12, arbitrary: pages(8) },
    unaligned,
    fc.constant(2 ** 52 - PAGE),
    fc.constant(2 ** 52),
  ),
  size: fc.oneof({ weight: 8, arbitrary: pages(4) }, unaligned),
  hva: fc.oneof(
    { weight: 8, arbitrary: pages(2).map((at) => memory + at) },
    unaligned.map((at) => memory + at),
  ),
});

function onNewVm<T>(use: (vm: number) => T): T {
  const { open, ioctl, close } = libc();
  const kvm = check(open('/dev/kvm', O_RDWR, 0), '/dev/kvm');
  const vm = check(ioctl(kvm, KVM.CREATE_VM, 0), 'KVM_CREATE_VM');
  try {
    return use(vm);
  } finally {
    close(vm);
    close(kvm);
  }
}

function ask(vm: number, request: SlotRequest): boolean {
  const bytes = new Uint8Array(kvmMemoryRegion.size);
  putRequest(bytes, 0, request);
  return libc().ioctlBytes(vm, KVM.SET_USER_MEMORY_REGION, bytes) === 0;
}

test('a slot table takes and refuses what the kernel does', { skip: missing() ?? false }, () => {
  fc.assert(
    fc.property(fc.array(request, { minLength: 1, maxLength: 30 }), (requests) => {
      onNewVm((vm) => {
        const table = new SlotTable();
        for (const each of requests) {
          const taken = ask(vm, each);
          const noted = table.apply(each, KNOWN_FLAGS);
          if (each.slot < 0x10000) assert.equal(noted, taken, JSON.stringify(each));
          else assert.equal(noted, false, 'a slot of another address space');
        }
      });
    }),
    { numRuns: 300 },
  );
});
