import { KvmiError } from '../../error.ts';

/* Why a QEMU machine is not hooked any more, or not left as it was. */

export function migrated(name: string): KvmiError {
  return new KvmiError('E_MIGRATION', `${name} is being migrated, or saved: it is unhooked`, {
    hint: 'QEMU copies its memory. Hook it again when that is over, where it runs then.',
  });
}

export function ended(name: string): KvmiError {
  return new KvmiError('E_GONE', `${name}: QEMU has ended, and not because its guest was shut down`, {
    hint: 'It was killed, told to quit, or crashed: see its log, or `journalctl`.',
  });
}

export function snapshotSpoilt(name: string): KvmiError {
  return new KvmiError(
    'E_MIGRATION',
    `a snapshot of ${name} was made with int3 in it: it is not to be used`,
    {
      hint: 'Delete that snapshot; make another one when nothing is hooked.',
    },
  );
}

export function copySpoilt(name: string): KvmiError {
  return new KvmiError(
    'E_MIGRATION',
    `${name} was copied before kvmi was out of it: the copy is not to be used`,
    { hint: 'Let the VM run here (`cont`); make another copy when nothing is hooked.' },
  );
}

export function stays(name: string, left: readonly number[]): KvmiError {
  const where = left.map((gpa) => `0x${gpa.toString(16)}`).join(', ');
  const what =
    left.length > 0 ? `int3 stays in guest memory at ${where}` : 'what kvmi did could not be undone yet';
  return new KvmiError('E_DETACH', `${name}: ${what}`, {
    hint:
      left.length > 0
        ? 'Write the bytes that belong there (`kvmi write`): a guest that runs into int3 gets an exception that nobody takes.'
        : 'The guard goes on while the VM lives; `kvmi repair VM` tells whether something is left.',
    data: { left },
  });
}
