import { POLL, SYS } from '../../abi/linux.ts';
import { machineOf } from './attach.ts';
import { check, libc } from './libc.ts';
import { pump } from './pump.ts';
import { VmFile } from './vm-file.ts';

/*
 * node guard-main.js TRACER VMM DESCRIPTOR
 *
 * Waits for the tracer's end and then removes the MSR filter that it has set on a VM: the only thing it arms that
 * neither the kernel nor the agent in the VMM takes back by itself.
 */

const [tracer, pid, vm] = process.argv.slice(2).map(Number) as [number, number, number];
const machine = machineOf(new VmFile(pid, vm), { unsafe: true, liftFilters: true });
// Everything is looked up before it is needed: there is not much time then.
machine.prepare();
const pidfd = check(Number(libc().syscall(SYS.pidfd_open, tracer, 0, 0, 0, 0, 0)), 'pidfd_open');
const watch = pump.watch(pidfd, POLL.IN, () => {
  watch.stop();
  void machine.clearMsrFilter().then(() => process.exit());
});
process.stdout.write('ready\n');
