import { existsSync } from 'node:fs';
import type { DumpOptions, DumpResult } from '../../drivers/snapshot/index.ts';
import { UsageError } from '../../error.ts';
import { oneOf, text } from '../../input/values.ts';
import type { Machine } from '../../machine/index.ts';
import { whilePaused } from '../../machine/paused.ts';
import { argument, command, defaultOption, flag, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { responsiveMemory } from '../responsive-memory.ts';
import { withMachine } from '../session.ts';
import { VM } from '../targets.ts';

const FORMATS = ['elf', 'raw', 'lime'] as const;
const COMPRESSIONS = ['zstd'] as const;

interface Wanted {
  readonly format: (typeof FORMATS)[number];
  readonly compress: (typeof COMPRESSIONS)[number] | undefined;
  readonly live: boolean;
  readonly fresh: boolean;
}

/** What a Linux kernel says about itself: crash and drgn ask for it. It never changes, so that the guest can run on. */
async function vmcoreinfoOf({ progress, signal }: Context, machine: Machine): Promise<string | undefined> {
  if (machine.vmcoreinfo !== undefined) return machine.vmcoreinfo;
  const { vmcoreinfoText } = await import('../../linux/index.ts');
  try {
    return await vmcoreinfoText(responsiveMemory(machine.memory, signal), ({ phase, done, total }) =>
      progress.show({ what: phase, done, total }),
    );
  } finally {
    progress.clear();
  }
}

interface Dumped extends DumpResult {
  /** Milliseconds that the guest was held. */
  readonly paused: number;
}

/** The guest is held from the first byte that is read to the last one, or not at all. */
async function dumped(context: Context, machine: Machine, file: string, wanted: Wanted): Promise<Dumped> {
  const { signal, progress, log } = context;
  const { format, compress, live, fresh } = wanted;
  const { dumpMemory, partialPath } = await import('../../drivers/snapshot/index.ts');
  const vmcoreinfo = format === 'elf' ? await vmcoreinfoOf(context, machine) : undefined;
  const { name, uuid } = machine;
  const memory = responsiveMemory(machine.memory, signal);
  const write = (more: Pick<DumpOptions, 'states' | 'onCopied'>): Promise<DumpResult> =>
    dumpMemory({ name, uuid, memory }, file, {
      format,
      signal,
      resume: !fresh,
      onProgress: ({ done, total }) => progress.show({ what: file, done, total }),
      ...(compress && { compression: compress }),
      ...(vmcoreinfo !== undefined && { vmcoreinfo }),
      ...more,
    });
  try {
    if (live) return { ...(await write({})), paused: 0 };
    let paused = 0;
    const result = await whilePaused(machine, signal, (states, release) => {
      log.info('the guest is paused while its memory is copied');
      const start = performance.now();
      const onCopied = (): void => {
        paused = performance.now() - start;
        release();
      };
      return write({ states, onCopied });
    });
    return { ...result, paused: Math.round(paused) };
  } finally {
    progress.clear();
    if (signal.aborted && existsSync(partialPath(file)))
      log.note(`${partialPath(file)} is the beginning of it; the same command goes on with it`);
  }
}

const SMEAR = 'the guest ran while its memory was copied: it is of no single moment, and without registers';

export const dump = command({
  name: 'dump',
  summary: 'write the memory of a VM to a file',
  description: [
    'The guest is paused while its memory is copied, so that the dump is a picture of one moment, and runs on ' +
      'afterwards. With --live it is never paused; what changes meanwhile does not fit together then. The file is for ' +
      'its owner only; zeros take no room in it.',
    'Until it is whole it is called FILE.partial. A dump that was interrupted, in whatever way, is gone on with when ' +
      'the same command is given again. Beside it stands FILE.checksums, with which `kvmi verify` finds damage. Every ' +
      'command takes the dump as `file:FILE`, also a packed one.',
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
    compress: valueOption(
      '--compress <METHOD>',
      'zstd: pack the file; `zstd -d` unpacks it for other tools',
      oneOf('--compress', COMPRESSIONS),
      COMPRESSIONS,
    ),
    live: flag('--live', 'do not pause the guest'),
    fresh: flag('--fresh', 'start anew, even if an earlier dump to that file was interrupted'),
  },
  examples: [
    { command: 'kvmi dump VM vm.elf', does: 'for kvmi, crash, drgn and Volatility 3' },
    { command: 'kvmi dump VM vm.elf.zst --compress zstd', does: 'smaller, for kvmi' },
    { command: 'kvmi dump VM vm.lime --format lime --live', does: 'in the format of LiME, without a pause' },
  ],
  columns: [
    { name: 'file', kind: 'text', key: true, about: 'that was written' },
    { name: 'format', kind: 'text', about: 'elf, raw or lime' },
    { name: 'compression', kind: 'text', wide: true, about: 'zstd, or nothing' },
    { name: 'size', kind: 'size', about: 'of the file' },
    { name: 'written', kind: 'size', about: 'of it, what is not zeros and takes room' },
    { name: 'unreadable', kind: 'decimal', about: 'pages that could not be read and are zeros' },
    { name: 'paused', kind: 'decimal', about: 'milliseconds that the guest was paused' },
    { name: 'milliseconds', kind: 'decimal', about: 'how long it took' },
  ],
  run(context, [vm, file], options) {
    const { format, compress, live } = options;
    if (existsSync(file)) throw new UsageError(`${file} exists`, 'Choose another name, or remove it first.');
    return withMachine(context, vm, async function* (machine) {
      const start = performance.now();
      const result = await dumped(context, machine, file, options);
      if (live) context.partial(SMEAR);
      if (result.resumed)
        context.partial('memory of two moments: the dump goes on with one that was interrupted');
      if (result.unreadable > 0) context.partial(`${result.unreadable} pages could not be read`);
      const { size, written, unreadable, paused } = result;
      const milliseconds = Math.round(performance.now() - start);
      yield { file, format, compression: compress, size, written, unreadable, paused, milliseconds };
    });
  },
});
