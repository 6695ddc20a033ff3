import { ERRNO } from '../abi/errno.ts';
import { POLL, SYS } from '../abi/linux.ts';
import { check, libc } from '../system/libc.ts';
import { pump } from '../system/pump.ts';
import { isMemoryRequest } from './intercepted-slots.ts';
import { serveListener } from './listener.ts';

/*
 * node listener-guard-main.js SUPERVISOR, with a seccomp listener as descriptor 3.
 *
 * Waits for the supervisor's end and then answers in its place: requests for memory are left to the kernel, so that
 * the VMM goes on; introspection is not there any more. Ends with the last process that has the filter.
 */

const LISTENER = 3;

const supervisor = Number(process.argv[2]);
const pidfd = check(Number(libc().syscall(SYS.pidfd_open, supervisor, 0, 0, 0, 0, 0)), 'pidfd_open');
const watch = pump.watch(pidfd, POLL.IN, () => {
  watch.stop();
  void serveListener(LISTENER, ({ request }) => (isMemoryRequest(request) ? undefined : -ERRNO.ENOSYS));
});
process.stdout.write('ready\n');
