import { oneOf } from '../../input/values.ts';
import { argument, command } from '../command.ts';
import { completionScript, SHELLS } from '../completion.ts';

export const completion = command({
  name: 'completion',
  summary: 'print a completion script for a shell',
  description: ['Completes commands, options, their values, and the names of VMs that run.'],
  arguments: [argument('SHELL', SHELLS.join(', '), oneOf('SHELL', SHELLS))],
  options: {},
  examples: [
    { command: 'source <(kvmi completion bash)', does: 'bash: in ~/.bashrc' },
    {
      command: 'source <(kvmi completion zsh)',
      does: 'zsh: in ~/.zshrc; or write it to a file _kvmi in $fpath',
    },
    { command: 'kvmi completion fish >~/.config/fish/completions/kvmi.fish', does: 'fish' },
  ],
  columns: [],
  // biome-ignore lint/correctness/useYield: a script is no row
  async *run(context, [shell]) {
    await context.write(completionScript(shell, await context.commands()));
  },
});
