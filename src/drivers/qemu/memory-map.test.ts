import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { parseHostAddress, parseMemoryTree } from './memory-map.ts';

/** A VM of 4 GiB: a PCI hole, RAM above it, devices and firmware. */
const TREE = `FlatView #0
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000fffff (prio 0, ram): smm.ram

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, ram): vga.vram
  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000 KVM
  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000 KVM
  0000000200000000-00000002000001ff (prio 0, ram): tiny
`;

describe("QEMU's memory tree", () => {
  test("gives the guest's RAM, as vCPUs outside SMM see it", () => {
    assert.deepEqual(parseMemoryTree(TREE), [
      { gpa: 0, size: 0xa0000, readonly: false, block: 'pc.ram', offset: 0 },
      { gpa: 0xc0000, size: 0xb000, readonly: true, block: 'pc.ram', offset: 0xc0000 },
      { gpa: 0x100000, size: 0xbff00000, readonly: false, block: 'pc.ram', offset: 0x100000 },
      { gpa: 0x100000000, size: 0x40000000, readonly: false, block: 'pc.ram', offset: 0xc0000000 },
    ]);
  });

  test('that makes no sense is refused', () => {
    const refused = (text: string) =>
      assert.throws(() => parseMemoryTree(text), { code: 'E_QEMU_MEMORY_MAP' });
    refused('');
    refused('FlatView #0\n AS "I/O", root: io\n  0000000000000000-0000000000000fff (prio 0, ram): x\n');
    refused(`FlatView #0
 AS "memory", root: system
  0000000000000000-0000000000001fff (prio 0, ram): a
  0000000000001000-0000000000001fff (prio 0, ram): b
`);
    fc.assert(
      fc.property(fc.string(), (text) => {
        assert.throws(() => parseMemoryTree(text), { code: 'E_QEMU_MEMORY_MAP' });
      }),
    );
  });

  test('host addresses', () => {
    assert.equal(
      parseHostAddress('Host virtual address for 0x0 (pc.ram) is 0x7f6d83fff000\r\n'),
      0x7f6d83fff000,
    );
    assert.equal(parseHostAddress('No memory is mapped at address 0xfebf0000'), undefined);
  });
});
