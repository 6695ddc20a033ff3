import { KvmiError } from '../error.ts';

/** What {@link Machine.attach} throws when this program has attached to the machine already. */
export function attachedAlready(name: string): KvmiError {
  return new KvmiError('E_BUSY', `${name}: this program has attached to it already`, {
    hint: 'Detach the other handler first: a machine has one.',
    data: { holder: process.pid },
  });
}
