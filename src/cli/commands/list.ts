import { findMachines } from '../../targets/find.ts';
import { command } from '../command.ts';

export const list = command({
  name: 'list',
  summary: 'show the VMs of this host and how each can be hooked',
  description: [
    'Looks through the processes of this host. VMs of other users are complete only for root. What is in the column ' +
      'TARGET can be given to every command as VM; where it is empty, the reason says what is missing.',
  ],
  arguments: [],
  options: {},
  examples: [
    { command: 'kvmi list', does: 'which VMs run here' },
    { command: "kvmi list --filter 'memory>=4G' -c pid,name,memory", does: 'only the large ones' },
    { command: 'kvmi list -o json', does: 'for a program' },
  ],
  columns: [
    { name: 'pid', kind: 'decimal', key: true, about: 'process of the VMM' },
    { name: 'name', kind: 'text', cut: true, about: 'what the VMM calls the VM' },
    { name: 'uuid', kind: 'text', wide: true, about: 'UUID of the VM' },
    { name: 'vcpus', kind: 'decimal', drop: 2, about: 'number of vCPUs' },
    { name: 'memory', kind: 'size', drop: 1, about: 'guest memory' },
    { name: 'vmm', kind: 'text', drop: 3, about: 'the program that runs the VM' },
    { name: 'accelerator', kind: 'text', drop: 4, about: 'what executes guest code: kvm, tcg' },
    { name: 'target', kind: 'text', about: 'how it can be hooked; empty when it cannot' },
    {
      name: 'reason',
      kind: 'text',
      cut: true,
      about: 'why it cannot be hooked, or that it needs `kvmi repair`',
    },
    {
      name: 'damaged',
      kind: 'boolean',
      wide: true,
      about: 'a kvmi that was killed has left something in the VM that nobody is about to undo',
    },
  ],
  async *run({ log }) {
    const found = await findMachines();
    if (found.length === 0) {
      log.note('no VM was found on this host');
      log.hint('Try the machine that lives in this process: kvmi info embedded:');
    }
    for (const vm of found) {
      const reasons = [
        ...(vm.damaged ? [`needs repair: kvmi repair ${vm.pid}`] : []),
        ...(vm.reason ? [vm.reason] : []),
      ];
      yield {
        ...vm,
        damaged: vm.damaged === true,
        ...(reasons.length > 0 && { reason: reasons.join('; ') }),
      };
    }
  },
});
