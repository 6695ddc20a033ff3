import { whenEnded } from '../../../system/guard-process.ts';
import { machineOf } from '../attach.ts';
import { undoSlots } from '../slots/slot-undo.ts';
import { VmFile } from '../slots/vm-file.ts';
import { journalledSlots, undoJournal } from './journal.ts';

/*
 * node guard-main.js TRACER VMM DESCRIPTOR, with the tracer's journal as descriptor 3
 *
 * Waits for the tracer's end and then takes back what the journal names: pages that are not in the memory slots of the
 * VM, breakpoints in guest memory, and the VM's MSR filter. Everything else that the tracer arms is taken back by the
 * kernel or the agent in the VMM.
 */

const JOURNAL = 3;

const [tracer, pid, vm] = process.argv.slice(2).map(Number) as [number, number, number];
const machine = machineOf(new VmFile(pid, vm), { unsafe: true, liftFilters: true });
// Everything is looked up before it is needed: there is not much time then.
machine.prepare();
whenEnded(tracer, () => {
  // Breakpoints first: vCPUs wait for them, and nothing else can fail before.
  const filtered = undoJournal(JOURNAL, machine.vmm.memory);
  putSlotsBack();
  if (!filtered) process.exit();
  void machine.clearMsrFilter().then(() => process.exit());
});

/** A VMM that is going needs no slots; its other traps are taken back all the same. */
function putSlotsBack(): void {
  const slots = journalledSlots(JOURNAL);
  if (slots.length === 0) return;
  try {
    undoSlots(machine.vmm, vm, slots);
  } catch {
    // There is nobody to tell.
  }
}
