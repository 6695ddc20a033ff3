/*
 * Extended state in the layout of XSAVE, as KVM_GET_XSAVE gives it: the FXSAVE image, a header of 64 bytes, and
 * the upper halves of the AVX registers. The processor works on this image directly.
 */

export const XSAVE_SIZE = 4096;
export const XSAVE_LEGACY_SIZE = 576;
export const XSAVE_AVX_OFFSET = 576;
export const XSAVE_AVX_SIZE = 256;
export const FXSAVE_SIZE = 512;

/** Offsets in the image. */
const FCW = 0;
export const MXCSR = 24;
export const MXCSR_MASK = 28;
export const XMM0 = 160;
/** XSTATE_BV: which components are not in their initial state. */
export const XSTATE = 512;

/** Bits of MXCSR that exist. */
export const MXCSR_KNOWN = 0xffff;

export function resetXsave(image: Uint8Array): void {
  image.fill(0);
  image[FCW] = 0x7f;
  image[FCW + 1] = 0x03;
  image[MXCSR] = 0x80;
  image[MXCSR + 1] = 0x1f;
  image[MXCSR_MASK] = MXCSR_KNOWN & 0xff;
  image[MXCSR_MASK + 1] = MXCSR_KNOWN >>> 8;
  image[XSTATE] = 3;
}

/** Whether an area from outside can be taken over: no unknown component, no reserved bit of MXCSR or the header. */
export function isAcceptableXsave(area: Uint8Array): boolean {
  if (area.length !== XSAVE_SIZE) return false;
  const data = new DataView(area.buffer, area.byteOffset, area.length);
  if ((data.getUint32(MXCSR, true) & ~MXCSR_KNOWN) !== 0) return false;
  if ((data.getUint32(XSTATE, true) & ~7) !== 0) return false;
  for (let i = XSTATE + 4; i < XSTATE + 64; i++) if (area[i] !== 0) return false;
  return true;
}
