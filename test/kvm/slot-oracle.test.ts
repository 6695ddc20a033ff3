import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KVM, KVM_MEM, kvmMemoryRegion } from '../../src/abi/kvm.ts';
import type { Memslot } from '../../src/drivers/kvm/slots/memslots.ts';
import { type OracleCall, SlotOracle } from '../../src/drivers/kvm/slots/slot-oracle.ts';
import { putRequest } from '../../src/drivers/kvm/slots/slot-request.ts';
import { check, libc } from '../../src/system/libc.ts';
import { missing } from './kit.ts';

/* Memory slots by questions alone, of real VMs in this process. */

const PAGE = 4096;
const EEXIST = 17;
const EINVAL = 22;
const O_RDWR = 2;
const READ_WRITE = 3;
const SHARED_ANONYMOUS = 0x21;

/** What a VMM has mapped, in pages, and whether the guest may only read it. */
interface Piece {
  readonly pages: number;
  /** Unused guest memory before it. */
  readonly gap: number;
  readonly readonly: boolean;
  readonly slot: number;
}

const piece: fc.Arbitrary<Piece> = fc.record({
  pages: fc.integer({ min: 1, max: 600 }),
  gap: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 40 }), fc.constant(0x30000)),
  readonly: fc.boolean(),
  slot: fc.integer({ min: 0, max: 502 }),
});
const pieces = fc.uniqueArray(piece, { minLength: 1, maxLength: 8, selector: ({ slot }) => slot });

class TestVm {
  readonly #kvm = check(libc().open('/dev/kvm', O_RDWR, 0), '/dev/kvm');
  readonly #vm = check(libc().ioctl(this.#kvm, KVM.CREATE_VM, 0), 'KVM_CREATE_VM');

  /** 0 or an error number. */
  set(slot: number, flags: number, gpa: number, size: number, hva: number): number {
    const bytes = new Uint8Array(kvmMemoryRegion.size);
    putRequest(bytes, 0, { slot, flags, gpa, size, hva });
    return this.#call(KVM.SET_USER_MEMORY_REGION, bytes);
  }

  #call(request: number, bytes: Uint8Array): number {
    return libc().ioctlBytes(this.#vm, request, bytes) === 0 ? 0 : libc().errno();
  }

  readonly ask = (calls: readonly OracleCall[]): number[] =>
    calls.map((call) => {
      if (call.ask === 'set') return this.set(call.slot, call.flags, call.gpa, call.size, call.hva);
      const bytes = new Uint8Array(24);
      new DataView(bytes.buffer).setUint32(0, call.slot, true);
      bytes[14] = 1;
      return this.#call(KVM.CLEAR_DIRTY_LOG, bytes);
    });

  close(): void {
    libc().close(this.#vm);
    libc().close(this.#kvm);
  }
}

function map(pages: number): { start: number; end: number } {
  const start = Number(libc().mmap(0, pages * PAGE, READ_WRITE, SHARED_ANONYMOUS, -1, 0));
  return { start, end: start + pages * PAGE };
}

function unmap({ start, end }: { start: number; end: number }): void {
  libc().munmap(start, end - start);
}

/** Makes the slots, and fails unless the oracle finds them and leaves them as they were. */
function assertFound(
  vm: TestVm,
  slots: readonly Memslot[],
  mappings: { start: number; end: number }[],
): void {
  const flags = ({ readonly }: Memslot): number => (readonly ? KVM_MEM.READONLY : 0);
  for (const slot of slots) {
    assert.equal(vm.set(slot.slot, flags(slot), slot.gpa, slot.size, slot.hva), 0, 'the slot is made');
  }
  const found = new SlotOracle(vm.ask, mappings).find();
  assert.deepEqual(
    found,
    [...slots].sort((a, b) => a.gpa - b.gpa),
  );
  for (const { slot, gpa, size } of slots) {
    assert.equal(vm.set(507, 0, gpa, PAGE, PAGE), EEXIST, `slot ${slot} is where it was`);
    assert.equal(vm.set(507, 0, gpa + size - PAGE, PAGE, PAGE), EEXIST, `slot ${slot} is where it was`);
  }
  const all = Array.from({ length: 509 }, (_, slot) => slot);
  const deleted = all.filter((slot) => vm.set(slot, 0, 0, 0, 0) === 0);
  assert.deepEqual(
    deleted,
    slots.map(({ slot }) => slot).sort((a, b) => a - b),
    'no slot is left behind',
  );
}

const skip = missing() ?? false;

test('the slots of any layout of whole mappings are found and left as they are', { skip }, () => {
  fc.assert(
    fc.property(pieces, (layout) => {
      const vm = new TestVm();
      const mappings = layout.map(({ pages }) => map(pages));
      try {
        let gpa = 0;
        const slots = layout.map(({ pages, gap, readonly, slot }, i) => {
          gpa += gap * PAGE;
          const made = { slot, gpa, size: pages * PAGE, hva: mappings[i]!.start, readonly };
          gpa += made.size;
          return made;
        });
        assertFound(vm, slots, mappings);
      } finally {
        vm.close();
        mappings.forEach(unmap);
      }
    }),
    { numRuns: 40 },
  );
});

test('the slots of a PC are found and left as they are', { skip }, () => {
  const vm = new TestVm();
  const ram = map(0x40000);
  const rom = map(0x40);
  const inRam = (slot: number, gpa: number, size: number, readonly = false): Memslot => ({
    slot,
    gpa,
    size,
    hva: ram.start + gpa,
    readonly,
  });
  try {
    const slots = [
      inRam(0, 0, 0xa0000),
      inRam(2, 0xc0000, 0xb000),
      inRam(4, 0xcb000, 0x3000, true),
      inRam(5, 0xce000, 0x32000),
      inRam(8, 0x100000, 0x3ff00000),
      { slot: 1, gpa: 0xfffc0000, size: 0x40000, hva: rom.start, readonly: true },
    ];
    assertFound(vm, slots, [ram, rom]);
  } finally {
    vm.close();
    unmap(ram);
    unmap(rom);
  }
});

test('the log of dirty pages of a slot goes on', { skip }, () => {
  const vm = new TestVm();
  const ram = map(64);
  try {
    assert.equal(vm.set(3, KVM_MEM.LOG_DIRTY_PAGES, 0x5000, 64 * PAGE, ram.start), 0);
    const expected = { slot: 3, gpa: 0x5000, size: 64 * PAGE, hva: ram.start, readonly: false };
    assert.deepEqual(new SlotOracle(vm.ask, [ram]).find(), [expected]);
    assert.deepEqual(vm.ask([{ ask: 'dirty-log', slot: 3 }]), [EINVAL], 'its dirty pages are logged');
  } finally {
    vm.close();
    unmap(ram);
  }
});

test('a VM that cannot be guessed is left as it is', { skip }, () => {
  const vm = new TestVm();
  const ram = map(64);
  try {
    assert.equal(vm.set(0, 0, 0x5000, 7 * PAGE, ram.start + 3 * PAGE), 0);
    assert.throws(() => new SlotOracle(vm.ask, [ram]).find(), { code: 'E_NO_MEMSLOTS', message: /0x5000/ });
    assert.equal(vm.set(507, 0, 0x5000, PAGE, PAGE), EEXIST, 'the slot is where it was');
  } finally {
    vm.close();
    unmap(ram);
  }
});
