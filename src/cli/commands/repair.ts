import type { LeftBehind } from '../../drivers/qemu/index.ts';
import { KvmiError } from '../../error.ts';
import { openMachine } from '../../targets/open.ts';
import { command } from '../command.ts';
import { OPTIONAL_VM } from '../targets.ts';

type Settled = Exclude<LeftBehind, { readonly kind: 'failed' }>;

/** What was found, when there is no more to do. @throws KvmiError with code E_REPAIR or E_AGAIN. */
function settled(left: LeftBehind): Settled {
  if (left.kind === 'failed') {
    throw new KvmiError('E_REPAIR', `the VM cannot be repaired now: ${left.reason}`, {
      hint: 'It is tried again by every command that opens the VM.',
    });
  }
  if (left.kind === 'in-hands' && !left.host) {
    throw new KvmiError(
      'E_AGAIN',
      `the guard of a killed kvmi (process ${left.pid}) is about to repair the VM`,
      {
        hint: 'It waits until QEMU answers. When it has ended, run the command again.',
        data: { guard: left.pid },
      },
    );
  }
  return left;
}

const OUTCOMES: Readonly<Record<Settled['kind'], string>> = {
  nothing: 'nothing',
  repaired: 'repaired',
  'in-hands': 'held',
};

export const repair = command({
  name: 'repair',
  summary: 'undo what a kvmi that was killed has left in a VM',
  description: [
    'A kvmi that is killed leaves a guard behind, which undoes what was armed in the VM. When the guard is killed, too, the ' +
      'next command that opens the VM does it, or this one: the breakpoints are removed, guest code is as it was, and the ' +
      'VM runs unless somebody else had paused it.',
    'Exit code 0: it is done, or there was nothing to do; the row says which. It is about VMs of QEMU; on stock KVM ' +
      'what is armed lives in the VMM.',
  ],
  arguments: [OPTIONAL_VM],
  options: {},
  examples: [{ command: 'kvmi repair VM', does: 'when `kvmi list` says that a VM needs repair' }],
  columns: [
    { name: 'vm', kind: 'text', key: true, cut: true, about: 'the VM' },
    {
      name: 'outcome',
      kind: 'text',
      about: '`repaired`; `nothing`: there was nothing to do; `held`: a kvmi that lives has it hooked',
    },
    { name: 'patches', kind: 'decimal', about: 'int3 that were named in guest memory' },
  ],
  async *run({ log, unsafe }, [vm]) {
    let left: LeftBehind = { kind: 'nothing' };
    const onLeft = (found: LeftBehind): void => {
      left = found;
    };
    const machine = await openMachine(vm, { log, unsafe, onLeft });
    try {
      const found = settled(left);
      if (found.kind === 'in-hands')
        log.info(`process ${found.pid} has it hooked, and undoes what it did itself`);
      yield {
        vm: machine.name,
        outcome: OUTCOMES[found.kind],
        patches: found.kind === 'repaired' ? found.patches : 0,
      };
    } finally {
      await machine.close();
    }
  },
});
