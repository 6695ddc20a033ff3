declare const kind: unique symbol;

/** Guest-physical address in bytes. A number: the 52 bits that x86-64 has fit exactly. */
export type Gpa = number & { readonly [kind]?: 'gpa' };
/** Guest frame number: a guest-physical address divided by {@link PAGE_SIZE}. */
export type Gfn = number & { readonly [kind]?: 'gfn' };
/** Guest-virtual address, as the guest's instructions use it. */
export type Gva = bigint & { readonly [kind]?: 'gva' };

export const PAGE_SIZE = 4096;
export const PAGE_SHIFT = 12;
/** No guest-physical address reaches this (x86-64: 52 physical address bits). */
export const GPA_LIMIT = 2 ** 52;

/** The frame that `gpa` lies in. */
export function gfnOf(gpa: Gpa): Gfn {
  return Math.floor(gpa / PAGE_SIZE);
}

/** The offset of `gpa` in its page. */
export function pageOffset(gpa: Gpa): number {
  return gpa % PAGE_SIZE;
}
