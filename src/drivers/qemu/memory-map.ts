import { KvmiError } from '../../error.ts';
import { GPA_LIMIT, PAGE_SIZE } from '../../machine/address.ts';

/** Guest memory at one range of guest-physical addresses, and where QEMU keeps it. */
export interface RamRange {
  readonly gpa: number;
  readonly size: number;
  readonly readonly: boolean;
  /** QEMU's name of the RAM block. */
  readonly block: string;
  /** Where the range starts in the block. */
  readonly offset: number;
}

const RANGE_LIMIT = 4096;

/** Memory of devices and firmware images: mapped like RAM, but not the guest's. */
const NOT_GUEST_RAM = /\.vram$|^vga|\.bios$|bios$|\.rom$|^system\.flash|^pflash/;

const RANGE = /^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom|nv-ram)\): (\S+)(?: @([0-9a-f]+))?/;

/**
 * The guest's RAM from the answer to `info mtree -f`: the flat view of the address space "memory", which is what
 * vCPUs outside system-management mode see.
 */
export function parseMemoryTree(text: string): RamRange[] {
  const ranges: RamRange[] = [];
  for (const line of memoryView(text)) {
    const match = RANGE.exec(line);
    if (match === null || NOT_GUEST_RAM.test(match[4]!)) continue;
    const gpa = Number.parseInt(match[1]!, 16);
    const end = Number.parseInt(match[2]!, 16) + 1;
    const range = {
      gpa,
      size: end - gpa,
      readonly: match[3] === 'rom',
      block: match[4]!,
      offset: match[5] === undefined ? 0 : Number.parseInt(match[5], 16),
    };
    if (isUsable(range)) ranges.push(range);
  }
  ranges.sort((a, b) => a.gpa - b.gpa);
  const overlap = ranges.some((range, i) => i > 0 && ranges[i - 1]!.gpa + ranges[i - 1]!.size > range.gpa);
  if (ranges.length === 0 || ranges.length > RANGE_LIMIT || overlap) {
    throw new KvmiError(
      'E_QEMU_MEMORY_MAP',
      "QEMU's memory tree (info mtree -f) shows no plausible guest RAM",
      {
        data: { ranges: ranges.length },
      },
    );
  }
  return ranges;
}

/** The lines of the flat view that belongs to the address space "memory". */
function memoryView(text: string): string[] {
  const views = text.split(/^FlatView /m);
  return views.find((view) => /^ AS "memory",/m.test(view))?.split(/\r?\n/) ?? [];
}

function isUsable({ gpa, size, offset }: RamRange): boolean {
  const aligned = gpa % PAGE_SIZE === 0 && size % PAGE_SIZE === 0 && offset % PAGE_SIZE === 0;
  return aligned && size > 0 && gpa + size <= GPA_LIMIT && Number.isSafeInteger(offset);
}

/** The address in QEMU's memory from the answer to `gpa2hva`; undefined when there is none. */
export function parseHostAddress(text: string): number | undefined {
  const match = /^Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)/m.exec(text);
  const address = match === null ? undefined : Number(match[1]);
  return address !== undefined && Number.isSafeInteger(address) ? address : undefined;
}
