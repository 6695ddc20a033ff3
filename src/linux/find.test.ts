import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LINUX_4_19, SyntheticLinux } from '../../test/kit/synthetic-linux.ts';
import { renderTable } from '../rows/index.ts';
import { Btf, Linux, PROCESS_COLUMNS, type Progress } from './index.ts';

describe('finding a kernel', () => {
  test('of 4.19, without BTF and with kallsyms that VMCOREINFO does not list, with types that are given', async () => {
    const guest = new SyntheticLinux(5, LINUX_4_19);
    await assert.rejects(async () => Linux.find(guest.memory, { cache: false }), { code: 'E_NO_TYPES' });
    const linux = await Linux.find(guest.memory, { types: new Btf(guest.btf) });
    assert.equal(linux.kernel.release, '4.19.0-synthetic');
    const { rows, reasons } = await linux.processes();
    assert.deepEqual(
      rows.map(({ pid, comm, startNs, state }) => [pid, comm, startNs, state]).slice(0, 2),
      [
        [1, 'init', 1_000_000n, 'R'],
        [2, 'task 2', 2_000_000n, 'R'],
      ],
      reasons.join(),
    );
  });

  test('one process by its id, with its parent; the rows are what columns print', async () => {
    const linux = await Linux.find(new SyntheticLinux().memory, { cache: false });
    const { rows } = await linux.process(2);
    const all = await linux.processes();
    assert.deepEqual(
      rows,
      all.rows.filter(({ pid }) => pid === 2),
    );
    assert.equal(typeof rows[0]!.address, 'bigint');
    const none = await linux.process(4711);
    assert.deepEqual([none.rows, none.reasons], [[], ['there is no process 4711']]);
  });

  test('ps takes one line a process on a terminal of 80 characters', async () => {
    const linux = await Linux.find(new SyntheticLinux().memory, { cache: false });
    const [one] = (await linux.process(2)).rows;
    const long = { ...one!, startTime: 1_732_000_000_000_000_000n, commandLine: ['/usr/bin/x'.repeat(30)] };
    const busy = { ...long, pid: 4194304, ppid: 4194303, uid: 4294967294, resident: 1023 << 20 };
    const [heading, ...lines] = renderTable(PROCESS_COLUMNS, [long, busy], { width: 80 }).split('\n');
    for (const line of lines) assert.ok(line.length <= 80, `${line.length}: ${line}`);
    for (const name of ['PID', 'PPID', 'STATE', 'RESIDENT', 'STARTED', 'COMMAND'])
      assert.ok(heading!.includes(name), name);
    assert.match(lines[1]!, /^4194304/, 'the key is whole');
  });

  test('without VMCOREINFO goes by the table of tokens, and says how far it is', async () => {
    for (const era of [undefined, LINUX_4_19]) {
      const guest = new SyntheticLinux(5, era);
      guest.bytes.fill(0, guest.bytes.indexOf('OSRELEASE='), guest.bytes.indexOf('OSRELEASE=') + 4096);
      const steps: Progress[] = [];
      const onProgress = (progress: Progress) => void steps.push(progress);
      const linux = await Linux.find(guest.memory, { types: new Btf(guest.btf), onProgress });
      assert.equal((await linux.processes()).rows.length, 5);
      assert.deepEqual([...new Set(steps.map(({ phase }) => phase))], ['VMCOREINFO', 'symbol table']);
      assert.ok(steps.every(({ done, total }) => done <= total && total === guest.bytes.length));
    }
  });

  test('takes a guest or a machine for its memory, with the VMCOREINFO that a dump carries', async () => {
    const guest = new SyntheticLinux();
    const at = guest.bytes.indexOf('OSRELEASE=');
    const vmcoreinfo = guest.bytes.toString('latin1', at, guest.bytes.indexOf(0, at));
    guest.bytes.fill(0, at, at + 4096);
    const steps: Progress[] = [];
    const options = { cache: false, onProgress: (progress: Progress) => void steps.push(progress) } as const;
    const linux = await Linux.find({ memory: guest.memory, vmcoreinfo }, options);
    assert.equal(linux.kernel.release, '6.9.0-synthetic');
    assert.deepEqual(steps, [], 'nothing was searched for');
  });
});
