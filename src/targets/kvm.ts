import { UsageError } from '../error.ts';
import type { Parse } from '../input/values.ts';
import type { Machine } from '../machine/index.ts';
import type { Target } from './target.ts';

const PROCESS = /^([1-9][0-9]{0,9})(?::([0-9]{1,9}))?$/;

function fields(text: string): { readonly pid: number; readonly vm?: number } {
  const [, pid, vm] = PROCESS.exec(text) ?? [];
  if (pid === undefined) {
    throw new UsageError(
      `${JSON.stringify(text)} is not the pid of a VMM`,
      'Write PID, or PID:FD for one of several VMs: `kvmi list` shows them.',
    );
  }
  return { pid: Number(pid), ...(vm !== undefined && { vm: Number(vm) }) };
}

/** `PID`, or `PID:FD` for the VM with that descriptor, as it was written. */
export const kvmProcess: Parse<string> = (text) => {
  fields(text);
  return text;
};

/** A VM on stock KVM, by the process that runs it. */
export const KVM_TARGET: Target = {
  prefix: 'kvm',
  syntax: 'PID[:FD]',
  about:
    'a VM on /dev/kvm by the process of its VMM, whatever that is; FD is one of its VMs, when it has several',
  async open(rest, { unsafe = false }): Promise<Machine> {
    const vm = fields(rest);
    const { attachKvm } = await import('../drivers/kvm/index.ts');
    return attachKvm({ ...vm, unsafe });
  },
};
