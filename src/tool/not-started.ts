import { KVM_ERRNO } from '../abi/errno.ts';
import { ReplyError } from '../wire/index.ts';

/** Whether a command failed because the guest has not started that vCPU yet (an application processor). */
export function isNotStarted(error: unknown): boolean {
  return error instanceof ReplyError && error.errno === KVM_ERRNO.KVM_EAGAIN;
}
