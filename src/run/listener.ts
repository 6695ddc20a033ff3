import { seccompNotification, seccompResponse } from '../abi/kvm.ts';
import { POLL, SECCOMP } from '../abi/linux.ts';
import { type Awaitable, deferred, then } from '../awaitable.ts';
import { libc } from '../system/libc.ts';
import { pump } from '../system/pump.ts';
import { type InterceptedIoctl, readNotification } from './requests.ts';

/**
 * Answers the notifications of a seccomp listener until nobody is left who could cause one; then it is closed.
 *
 * @param answer what the ioctl returns: 0 or more, a negative errno, or undefined when the kernel is to carry it out.
 */
export function serveListener(
  listener: number,
  answer: (ioctl: InterceptedIoctl) => Awaitable<number | undefined>,
): Promise<void> {
  const { promise, resolve } = deferred<void>();
  const lib = libc();
  // Not in every kernel; without it a round trip takes about four times as long.
  lib.ioctl(listener, SECCOMP.NOTIF_SET_FLAGS, SECCOMP.FD_SYNC_WAKE_UP);
  const notification = new Uint8Array(seccompNotification.size);
  const watch = pump.watch(listener, POLL.IN, (events) => {
    if (events & POLL.IN) {
      notification.fill(0);
      if (lib.ioctlBytes(listener, SECCOMP.NOTIF_RECV, notification) < 0) return;
      const ioctl = readNotification(notification);
      void then(answer(ioctl), (result) => respond(listener, ioctl.id, result));
    } else if (events & (POLL.HUP | POLL.ERR | POLL.NVAL)) {
      watch.stop();
      lib.close(listener);
      resolve();
    }
  });
  return promise;
}

function respond(listener: number, id: bigint, result: number | undefined): void {
  const response = new Uint8Array(seccompResponse.size);
  seccompResponse.write(response, 0, {
    id,
    value: BigInt(result === undefined || result < 0 ? 0 : result),
    error: result !== undefined && result < 0 ? result : 0,
    flags: result === undefined ? SECCOMP.RESPONSE_CONTINUE : 0,
  });
  // Fails when the caller was killed meanwhile; then nobody waits for it.
  libc().ioctlBytes(listener, SECCOMP.NOTIF_SEND, response);
}
