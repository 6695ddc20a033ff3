import { KvmiError } from '../../../error.ts';
import { mappings } from '../../../system/proc.ts';
import type { ProcessMemory } from '../../../system/process-memory.ts';

const SEARCHED_BYTES = 1 << 20;
const SYSCALL_INSTRUCTION = Uint8Array.of(0x0f, 0x05);

/** What can be found in the code of a process for carrying out system calls in it. */
export interface SyscallSite {
  /** Address of a `syscall` instruction. */
  readonly instruction: bigint;
  /** Address of a byte that is 0. */
  readonly emptyString: bigint;
}

/**
 * Finds a `syscall` instruction in a process. The vDSO has one in every process; its code is the kernel's, the same
 * for all.
 */
export function findSyscallSite(pid: number, memory: ProcessMemory): SyscallSite {
  const executable = mappings(pid).filter(
    ({ permissions, name }) => permissions.includes('x') && name !== '[vsyscall]',
  );
  executable.sort((a, b) => Number(b.name === '[vdso]') - Number(a.name === '[vdso]'));
  for (const { start, end } of executable) {
    const code = Buffer.alloc(Math.min(end - start, SEARCHED_BYTES));
    if (!memory.read(start, code)) continue;
    const at = code.indexOf(SYSCALL_INSTRUCTION);
    const zero = code.indexOf(0);
    if (at >= 0 && zero >= 0) return { instruction: BigInt(start + at), emptyString: BigInt(start + zero) };
  }
  throw new KvmiError('E_TRACE', `no system call instruction was found in process ${pid}`);
}
