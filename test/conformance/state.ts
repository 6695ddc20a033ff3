import { getU64 } from '../../src/abi/bytes.ts';

export { getRegister } from '../../src/abi/state.ts';

/** A u64 of a structure that is kept as bytes. */
export function getU64At(bytes: Uint8Array, at: number): bigint {
  return getU64(bytes, at);
}
