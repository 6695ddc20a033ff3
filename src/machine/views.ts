import type { Awaitable } from '../awaitable.ts';
import type { Gfn } from './address.ts';
import type { Vcpu } from './vcpu.ts';

/**
 * Alternative views of guest-physical memory (dialect v7, "EPT views"): each has its own page access
 * and may show other frames. View 0 always exists.
 */
export interface Views {
  /** How many views there can be. */
  readonly limit: number;
  exists(view: number): boolean;
  /** A new view's number, or undefined when there can be no more. */
  create(): Awaitable<number | undefined>;
  /** False when there is no such view, or it is view 0 or in use by a vCPU. */
  destroy(view: number): Awaitable<boolean>;
  current(vcpu: Vcpu): number;
  /** False when there is no such view. */
  switch(vcpu: Vcpu, view: number): Awaitable<boolean>;
  /** Whether the guest may switch to `view` on its own. */
  setVisible(vcpu: Vcpu, view: number, visible: boolean): Awaitable<boolean>;
  /** Shows `to` where the guest addresses `from`; the same frame twice restores it. */
  changeGfn(view: number, from: Gfn, to: Gfn): Awaitable<boolean>;
  /** Sub-page write rights: bit i of `bitmap` allows writes to the i-th 128 bytes. */
  setWriteBitmap?(view: number, gfn: Gfn, bitmap: number): Awaitable<boolean>;
}

/** Guest frames that come and go at run time (dialect v7, VCPU_ALLOC_GFN and VCPU_FREE_GFN). */
export interface Frames {
  /** Puts a page of zeros behind an unused frame. False when the frame is in use. */
  allocate(gfn: Gfn): Awaitable<boolean>;
  /** Takes back `allocate`. False when the frame was not allocated by it. */
  free(gfn: Gfn): Awaitable<boolean>;
}
