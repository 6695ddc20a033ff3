import { getU32 } from '../abi/bytes.ts';
import { SREGS_OFFSET } from '../abi/state.ts';
import { CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE, kvmSregs } from '../abi/x86.ts';
import type { Gpa } from './address.ts';

/** How linear addresses become guest-physical ones (Intel SDM vol. 3, chapter 4). `32-bit-pse` has 4 MiB pages. */
export type PagingMode = 'none' | '32-bit' | '32-bit-pse' | 'pae' | '4-level' | '5-level';

/** All that a page walk needs to know about a vCPU, or about an address space found in guest memory. */
export interface Paging {
  readonly mode: PagingMode;
  /** The top table: CR3 without its flags. */
  readonly root: Gpa;
  /** EFER.NXE: bit 63 of an entry forbids execution; without it that bit is reserved. */
  readonly nx: boolean;
}

const CR0 = SREGS_OFFSET + kvmSregs.offsetOf('cr0');
const CR3 = SREGS_OFFSET + kvmSregs.offsetOf('cr3');
const CR4 = SREGS_OFFSET + kvmSregs.offsetOf('cr4');
const EFER = SREGS_OFFSET + kvmSregs.offsetOf('efer');

const PG = Number(CR0_PG);
const PSE = Number(CR4_PSE);
const PAE = Number(CR4_PAE);
const LA57 = Number(CR4_LA57);
const LMA = Number(EFER_LMA);
const NXE = Number(EFER_NXE);

/** The paging in effect in a 536-byte state block. */
export function pagingOf(state: Uint8Array): Paging {
  const efer = getU32(state, EFER);
  const mode = modeOf(getU32(state, CR0), getU32(state, CR4), efer);
  const high = (efer & LMA) !== 0 ? getU32(state, CR3 + 4) & 0xfffff : 0;
  const low = (getU32(state, CR3) & (mode === 'pae' ? PAE_ROOT : PAGE_ROOT)) >>> 0;
  return { mode, root: high * 2 ** 32 + low, nx: (efer & NXE) !== 0 };
}

const PAGE_ROOT = 0xfffff000;
/** The four entries at the top of PAE paging are aligned to their size only. */
const PAE_ROOT = 0xffffffe0;

function modeOf(cr0: number, cr4: number, efer: number): PagingMode {
  if ((cr0 & PG) === 0) return 'none';
  if ((efer & LMA) !== 0) return (cr4 & LA57) !== 0 ? '5-level' : '4-level';
  if ((cr4 & PAE) !== 0) return 'pae';
  return (cr4 & PSE) !== 0 ? '32-bit-pse' : '32-bit';
}
