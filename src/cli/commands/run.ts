import { UsageError } from '../../error.ts';
import { oneOf } from '../../input/values.ts';
import type { RunDialect } from '../../run/index.ts';
import { command, defaultOption, flag } from '../command.ts';

const RUN_DIALECTS = ['auto', 'v9', 'v12'] as const satisfies readonly RunDialect[];

export const run = command({
  name: 'run',
  summary: 'run a VMM as on a kernel with KVM introspection',
  description: [
    'For programs that make the ioctls KVM_INTROSPECTION_HOOK, _UNHOOK, _PREUNHOOK, _COMMAND and _EVENT: kvmi answers ' +
      'them, and serves the tool on the socket that the program hands over. The program is not changed.',
    'Standard input, output and error are the program’s. So are signals: SIGTERM and SIGHUP are passed on, Ctrl-C ' +
      'reaches it from the terminal. The log of kvmi is shown with -v only. kvmi ends with the exit code of the program, or ' +
      'with 128 and the number of the signal that ended it; the exit codes below are for errors before it is started.',
    'It needs the optional dependency koffi and /dev/kvm, but not root; kvmi doctor tells what is missing.',
  ],
  arguments: [],
  options: {
    dialect: defaultOption(
      '--dialect <NAME>',
      'what the program speaks: v9 or v12; auto tells them apart by the numbers of its requests',
      oneOf('--dialect', RUN_DIALECTS),
      'auto',
      RUN_DIALECTS,
    ),
    disabled: flag('--disabled', 'refuse as a kernel does whose parameter kvm.introspection is off'),
  },
  examples: [
    { command: 'kvmi run -- ./vmm --kernel bzImage', does: 'a VMM with support for KVM introspection' },
    {
      command: 'kvmi run -v --dialect v9 -- ./vmm',
      does: 'one that was made for series v9, with the log of kvmi',
    },
  ],
  columns: [],
  runsProgram: true,
  // There are no rows: what is printed is the program's.
  async *run({ program, signal, log, unsafe, exitWith }, _none, { dialect, disabled }) {
    if (program.length === 0) {
      throw new UsageError('the program is missing', 'Give it after --: kvmi run -- PROGRAM ARGUMENT…');
    }
    const { runUnderKvmi } = await import('../../run/index.ts');
    // Only --timeout aborts; a SIGTERM of this process is passed on to the program.
    signal.addEventListener('abort', () => process.kill(process.pid, 'SIGTERM'), { once: true });
    log.info(`running ${program.join(' ')}`);
    exitWith(await runUnderKvmi(program, { dialect, enabled: !disabled, unsafe, log }));
  },
});
