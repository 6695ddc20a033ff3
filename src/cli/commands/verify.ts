import { text } from '../../input/values.ts';
import { argument, command } from '../command.ts';
import { EXIT } from '../exit-codes.ts';

export const verify = command({
  name: 'verify',
  summary: 'compare a memory dump with its checksums',
  description: [
    'A row for each part of guest memory that is not as it was when `kvmi dump` wrote it, and exit code ' +
      `${EXIT.alert.code} when there is one. The checksums, in FILE.checksums, find damage; they do not keep anybody ` +
      'from changing both.',
  ],
  arguments: [argument('FILE', 'a dump that `kvmi dump` has written', text)],
  options: {},
  examples: [{ command: 'kvmi verify vm.elf', does: 'after it was copied' }],
  columns: [
    { name: 'address', kind: 'hex', key: true, about: 'guest-physical, of the first byte of the part' },
    { name: 'size', kind: 'size', about: 'of the part' },
  ],
  async *run(context, [file]) {
    const { verifyDump } = await import('../../drivers/snapshot/index.ts');
    const { progress, signal } = context;
    const onProgress = (state: { done: number; total: number }): void =>
      progress.show({ what: file, ...state });
    const damage = await verifyDump(file, { signal, onProgress }).finally(() => progress.clear());
    if (damage.length > 0) context.exitWith(EXIT.alert.code);
    else context.log.note(`${file} is as it was written`);
    for (const { gpa, size } of damage) yield { address: gpa, size };
  },
});
