import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { LinuxGuest } from './linux-guest.ts';

const PATIENCE_MS = 60_000;

/** The node that {@link addSnapshotDisk} adds. */
export const SNAPSHOT_NODE = 'snapshots';

/** Waits until a job of QEMU has ended without an error, and dismisses it. */
export async function jobEnds(vm: LinuxGuest, id: string): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; ; ) {
    const jobs = (await vm.monitor.execute('query-jobs')) as {
      id: string;
      status: string;
      error?: string;
    }[];
    const found = jobs.find((each) => each.id === id)!;
    assert.equal(found.error, undefined);
    if (found.status === 'concluded') break;
    assert.ok(Date.now() < deadline, `${id} ends`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await vm.monitor.execute('job-dismiss', { id });
}

/** A disk for snapshots, made by QEMU itself. */
export async function addSnapshotDisk(vm: LinuxGuest): Promise<void> {
  const filename = join(vm.directory, 'snapshots.qcow2');
  const size = 1 << 20;
  const create = async (id: string, options: object): Promise<void> => {
    await vm.monitor.execute('blockdev-create', { 'job-id': id, options });
    await jobEnds(vm, id);
  };
  await create('file', { driver: 'file', filename, size: 0 });
  await vm.monitor.execute('blockdev-add', { driver: 'file', filename, 'node-name': 'snapshot-file' });
  await create('qcow2', { driver: 'qcow2', file: 'snapshot-file', size });
  await vm.monitor.execute('blockdev-add', {
    driver: 'qcow2',
    file: 'snapshot-file',
    'node-name': SNAPSHOT_NODE,
  });
}
