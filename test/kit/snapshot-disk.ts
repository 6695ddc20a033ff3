import assert from 'node:assert/strict';
import { join } from 'node:path';
import { until } from './guarded.ts';
import type { LinuxGuest } from './linux-guest.ts';

/** The node that {@link addSnapshotDisk} adds. */
const NODE = 'snapshots';

/** A disk for snapshots, made by QEMU itself. */
export async function addSnapshotDisk(vm: LinuxGuest): Promise<void> {
  const filename = join(vm.directory, 'snapshots.qcow2');
  const create = async (id: string, options: object): Promise<void> => {
    await vm.monitor.execute('blockdev-create', { 'job-id': id, options });
    await jobEnds(vm, id);
  };
  await create('file', { driver: 'file', filename, size: 0 });
  await vm.monitor.execute('blockdev-add', { driver: 'file', filename, 'node-name': 'snapshot-file' });
  await create('qcow2', { driver: 'qcow2', file: 'snapshot-file', size: 1 << 20 });
  await vm.monitor.execute('blockdev-add', { driver: 'qcow2', file: 'snapshot-file', 'node-name': NODE });
}

/** Makes or loads a snapshot as a job, which ends without an error. */
export async function snapshotJob(
  vm: LinuxGuest,
  command: 'snapshot-save' | 'snapshot-load',
  tag: string,
): Promise<void> {
  await vm.monitor.execute(command, { 'job-id': command, tag, vmstate: NODE, devices: [NODE] });
  await jobEnds(vm, command);
}

/** Waits until a job has ended without an error, and dismisses it. */
async function jobEnds(vm: LinuxGuest, id: string): Promise<void> {
  await until(async () => {
    const jobs = (await vm.monitor.execute('query-jobs')) as { id: string; status: string; error?: string }[];
    const found = jobs.find((each) => each.id === id)!;
    assert.equal(found.error, undefined, id);
    return found.status === 'concluded';
  }, `${id} ends`);
  await vm.monitor.execute('job-dismiss', { id });
}
