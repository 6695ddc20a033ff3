import { existsSync } from 'node:fs';
import { argument, command, defaultOption, flag } from '../command.ts';
import { UsageError } from '../errors.ts';
import { whilePaused } from '../paused.ts';
import { responsiveMemory } from '../responsive-memory.ts';
import { withMachine } from '../session.ts';
import { VM } from '../targets.ts';
import { oneOf, text } from '../values.ts';

const FORMATS = ['elf', 'raw', 'lime'] as const;

export const dump = command({
  name: 'dump',
  summary: 'write the memory of a VM to a file',
  description: [
    'The guest is paused while its memory is copied, so that the dump is a picture of one moment, and runs on ' +
      'afterwards. The file is for its owner only; pages of zeros take no room in it. Beside it stands ' +
      'FILE.checksums. A dump that was interrupted is gone on with when the same command is given again. The file can ' +
      'be given to every command as `file:FILE`.',
  ],
  arguments: [VM, argument('FILE', 'to write; it must not exist', text)],
  options: {
    format: defaultOption(
      '--format <FORMAT>',
      'elf (with registers), raw (from address 0 on) or lime',
      oneOf('--format', FORMATS),
      'elf',
      FORMATS,
    ),
    fresh: flag('--fresh', 'start anew, even if an earlier dump to that file was interrupted'),
  },
  examples: [
    { command: 'kvmi dump VM vm.elf', does: 'for kvmi, crash and Volatility 3' },
    { command: 'kvmi dump VM vm.lime --format lime', does: 'in the format of LiME' },
  ],
  columns: [
    { name: 'file', kind: 'text', key: true, about: 'that was written' },
    { name: 'format', kind: 'text', about: 'elf, raw or lime' },
    { name: 'size', kind: 'size', about: 'of the file' },
    { name: 'written', kind: 'size', about: 'of it, what is not zeros and takes room' },
    { name: 'unreadable', kind: 'decimal', about: 'pages that could not be read and are zeros' },
    { name: 'milliseconds', kind: 'decimal', about: 'how long it took; the guest was paused' },
  ],
  run(context, [vm, file], { format, fresh }) {
    const { signal, progress, log } = context;
    if (existsSync(file)) throw new UsageError(`${file} exists`, 'Choose another name, or remove it first.');
    return withMachine(context, vm, async function* (machine) {
      const { dumpMemory } = await import('../../drivers/snapshot/index.ts');
      const resumed = !fresh && existsSync(`${file}.partial`);
      if (resumed) log.info(`going on with ${file}.partial`);
      const start = performance.now();
      const result = await whilePaused(machine, signal, (states) =>
        dumpMemory({ memory: responsiveMemory(machine.memory, signal) }, file, {
          format,
          states,
          signal,
          resume: !fresh,
          onProgress: ({ done, total }) => progress.show({ what: file, done, total }),
        }),
      ).finally(() => progress.clear());
      if (resumed) context.partial('memory of two moments: the dump goes on with one that was interrupted');
      if (result.unreadable > 0) context.partial(`${result.unreadable} pages could not be read`);
      yield { ...result, format, milliseconds: Math.round(performance.now() - start) };
    });
  },
});
