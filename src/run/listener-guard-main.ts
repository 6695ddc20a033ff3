import { ERRNO } from '../abi/errno.ts';
import { whenEnded } from '../system/guard-process.ts';
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
whenEnded(supervisor, () => {
  void serveListener(LISTENER, ({ request }) => (isMemoryRequest(request) ? undefined : -ERRNO.ENOSYS));
});
