import { command } from '../command.ts';
import { HOOK_OPTIONS, hookToTool } from '../hooking.ts';
import { OPTIONAL_VM } from '../targets.ts';

export const hook = command({
  name: 'hook',
  summary: 'hook a VM to an introspection tool, as a device manager does',
  description: [
    'Connects to the socket where the tool listens, exchanges the handshake, hooks the VM and serves the tool until it ' +
      'unhooks or hangs up, the VM ends, or Ctrl-C. On every way out the VM is unhooked.',
    'The tool may read and change the whole guest. --allow-commands and --allow-events limit it; --cookie-file makes sure ' +
      'that it is the right one.',
  ],
  arguments: [OPTIONAL_VM],
  options: HOOK_OPTIONS,
  examples: [
    { command: 'kvmi hook VM --tool unix:/run/tool.sock', does: 'hook the VM to a tool that listens there' },
    {
      command: 'kvmi hook VM --tool unix:/run/tool.sock --dialect v7 --reconnect 1',
      does: 'serve a tool that is made with libkvmi, whenever it runs',
    },
    {
      command: 'kvmi hook VM --tool tcp:10.0.0.2:4321 --cookie-file secret --allow-events BREAKPOINT,PAUSE',
      does: 'a tool on another host that has to know the secret, with few rights',
    },
  ],
  columns: [],
  verbose: true,
  run(context, [vm], options) {
    return hookToTool(context, vm, options);
  },
});
