import { SYS } from '../../../abi/linux.ts';
import { libc, takeDescriptor } from '../../../system/libc.ts';
import { kvmDescriptors } from '../../../system/proc.ts';

const KCMP_FILE = 0;
const KCMP_VM = 1;

/** Whether descriptors of two processes are the same open file. */
export function sameFile(pidA: number, fdA: number, pidB: number, fdB: number): boolean {
  return Number(libc().syscall(SYS.kcmp, pidA, pidB, KCMP_FILE, fdA, fdB, 0)) === 0;
}

/** Whether two processes share their memory. */
export function sameAddressSpace(pidA: number, pidB: number): boolean {
  return Number(libc().syscall(SYS.kcmp, pidA, pidB, KCMP_VM, 0, 0, 0)) === 0;
}

/**
 * A VM descriptor of another process, held: descriptor numbers are reused, the file is not. While it is held the
 * kernel keeps the VM, so it has to be released when its owner has closed it.
 */
export class VmFile {
  readonly pid: number;
  /** The descriptor in this process. */
  readonly held: number;
  #released = false;

  /** @throws SystemError when the process or the descriptor is gone. */
  constructor(pid: number, fd: number) {
    this.pid = pid;
    this.held = takeDescriptor(pid, fd);
  }

  /** Whether `fd` of process `pid` is this VM. */
  is(pid: number, fd: number): boolean {
    return sameFile(process.pid, this.held, pid, fd);
  }

  /** The number that the owner has for it now; undefined when it has closed it or is gone, and after `release`. */
  ownersDescriptor(): number | undefined {
    if (this.#released) return undefined;
    return kvmDescriptors(this.pid).vms.find((fd) => this.is(this.pid, fd));
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    libc().close(this.held);
  }
}
