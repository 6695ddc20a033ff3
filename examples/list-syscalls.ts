import { createEmbeddedMachine, kernelNumber, kernelSymbol } from '../src/drivers/embedded/index.ts';
import { introspect } from '../src/index.ts';

/* Lists the system calls of a guest: a breakpoint where its kernel takes them. */

const COUNT = 12;
const NAMES = new Map(
  ['write', 'mmap', 'sched_yield', 'getpid', 'spawn', 'exit', 'getppid'].map((name) => [
    BigInt(kernelNumber('syscall', name)),
    name,
  ]),
);

const machine = createEmbeddedMachine({ name: 'demo' });
machine.start();
const guest = await introspect(machine);

// The kernel has to be up before its addresses can be translated.
const entry = kernelSymbol('syscall_entry');
while ((await guest.vcpus[0]!.translate(entry)) === undefined) {
  await new Promise((resolve) => setTimeout(resolve, 10));
}

await new Promise<void>((enough) => {
  void guest.breakpoints.set(entry, ({ vcpu, registers }, breakpoint) => {
    if (breakpoint.hits > COUNT) return;
    const name = NAMES.get(registers.rax) ?? `syscall ${registers.rax}`;
    console.log(`vCPU ${vcpu.index}  ${name}(0x${registers.rdi.toString(16)})`);
    if (breakpoint.hits === COUNT) enough();
  });
});

// Takes the breakpoint out; the guest goes on as if it had never been hooked.
await guest.detach();
await machine.close();
