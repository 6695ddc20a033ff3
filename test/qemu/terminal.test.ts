import { journalOf, nothingLeft, unharmed } from '../kit/guarded.ts';
import { KernelText } from '../kit/kernel-text.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { describeTerminal, type Subject } from './terminal-cases.ts';

async function qemu(): Promise<Subject> {
  const vm = await LinuxGuest.boot({ smp: 2 });
  const text = await KernelText.of(vm);
  return {
    target: `qemu:${vm.qmp}`,
    environment: {},
    get journal() {
      return journalOf(vm.pid);
    },
    async unharmed(when, journal) {
      await nothingLeft(vm, journal, when);
      await unharmed(vm, text, when);
    },
    freeze() {
      process.kill(vm.pid, 'SIGSTOP');
      return () => process.kill(vm.pid, 'SIGCONT');
    },
    stop: async () => vm.kill(),
  };
}

describeTerminal('QEMU', qemu, whyNoLinuxGuest());
