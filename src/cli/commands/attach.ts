import { kvmProcess } from '../../targets/kvm.ts';
import { argument, command } from '../command.ts';
import { HOOK_OPTIONS, hookToTool } from '../hooking.ts';

export const attach = command({
  name: 'attach',
  summary: 'hook a VM on KVM to an introspection tool by the process of its VMM',
  description: [
    'The same as kvmi hook with kvm:PID. The VMM may be any that uses /dev/kvm; it need not know of kvmi, nor be ' +
      'restarted. Its vCPU threads are traced while the VM is hooked. On every way out the VM is unhooked.',
    'It needs the optional dependency koffi and the right to trace the process; kvmi doctor tells what is missing.',
  ],
  arguments: [
    argument('PID', 'the process of the VMM; PID:FD when it has several VMs, see kvmi list', kvmProcess),
  ],
  options: HOOK_OPTIONS,
  examples: [
    { command: 'kvmi attach 4711 --tool unix:/run/tool.sock', does: 'hook the VM of process 4711 to a tool' },
    {
      command: 'kvmi attach 4711 --tool unix:/run/tool.sock --dialect v7 --reconnect 1',
      does: 'serve a tool that is made with libkvmi, whenever it runs',
    },
  ],
  columns: [],
  verbose: true,
  run(context, [process], options) {
    return hookToTool(context, `kvm:${process}`, options);
  },
});
