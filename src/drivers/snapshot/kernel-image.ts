/** Guest memory that is also known by a virtual address. */
export interface Alias {
  readonly gva: bigint;
  readonly gpa: number;
  readonly size: number;
}

/** Where the kernel's image is mapped (Documentation/arch/x86/x86_64/mm.rst). */
const IMAGE_MAP = 0xffff_ffff_8000_0000n;
/** Of an image; more than any distribution's kernel needs. */
const MAX_IMAGE = 128 << 20;
const PAGE = 4096n;

/**
 * Where the image of the Linux that said `vmcoreinfo` is in memory, as /proc/vmcore has it: debuggers find the page tables
 * through it, and read the kernel's variables. Undefined when the text does not say, or names what no run holds.
 */
export function kernelImage(
  vmcoreinfo: string,
  runs: readonly { readonly gpa: number; readonly size: number }[],
): Alias | undefined {
  const start = /^SYMBOL\(_stext\)=([0-9a-f]{1,16})$/m.exec(vmcoreinfo)?.[1];
  const physicalBase = /^NUMBER\(phys_base\)=(-?\d{1,18})$/m.exec(vmcoreinfo)?.[1];
  if (start === undefined || physicalBase === undefined) return undefined;
  const gva = BigInt(`0x${start}`) & ~(PAGE - 1n);
  const gpa = Number(gva - IMAGE_MAP + BigInt(physicalBase));
  const run = runs.find((each) => gpa >= each.gpa && gpa < each.gpa + each.size);
  if (gva < IMAGE_MAP || run === undefined) return undefined;
  return { gva, gpa, size: Math.min(run.gpa + run.size - gpa, MAX_IMAGE, Number((1n << 64n) - gva)) };
}
