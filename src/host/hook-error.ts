import { ERRNO } from '../abi/errno.ts';
import { KvmiError, messageOf } from '../error.ts';

/**
 * Why HOOK failed with `result`: E_BUSY when somebody else holds the machine, whoever asks, otherwise E_HOOK with the
 * `cause`.
 */
export function hookError(name: string, result: number, cause: unknown): KvmiError {
  if (cause instanceof KvmiError && cause.code === 'E_BUSY') return cause;
  const errno = Object.entries(ERRNO).find(([, value]) => value === -result)?.[0] ?? String(-result);
  const hint = cause instanceof KvmiError ? cause.hint : undefined;
  const why = cause === undefined ? '' : `: ${messageOf(cause)}`;
  return new KvmiError('E_HOOK', `cannot hook ${name} (${errno})${why}`, {
    data: { errno },
    ...(hint && { hint }),
    ...(cause !== undefined && { cause }),
  });
}
