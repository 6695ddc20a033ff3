import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { processes, readText } from '../../src/system/proc.ts';
import { type Ended, kvmi } from '../kit/kvmi-process.ts';

/* libvirt domains where virsh is missing, or says something else than it should. */

const PATIENCE_MS = 30_000;

function runs(pid: number): boolean {
  return processes().includes(pid) && !readText(`/proc/${pid}/stat`)?.includes(') Z ');
}

describe('kvmi and virsh', { skip: process.platform === 'linux' ? false : 'needs Linux' }, () => {
  let directory: string;

  before(() => {
    directory = mkdtempSync(join(tmpdir(), 'kvmi-virsh-'));
  });
  after(() => rmSync(directory, { recursive: true, force: true }));

  /** `script`: what virsh does, as a shell script; without it there is none. */
  function withVirsh(script: string | undefined): Promise<Ended> {
    const program = join(directory, 'virsh');
    rmSync(program, { force: true });
    if (script !== undefined) {
      writeFileSync(program, `#!/bin/sh\n${script}\n`);
      chmodSync(program, 0o755);
    }
    const path = script === undefined ? directory : `${directory}${delimiter}${process.env.PATH}`;
    return kvmi(['info', 'libvirt:web'], { PATH: path });
  }

  test('it is not installed', async () => {
    const { code, stderr } = await withVirsh(undefined);
    assert.equal(code, EXIT.peer.code, stderr);
    assert.match(stderr, /virsh does not start/);
    assert.match(stderr, /libvirt-clients/);
  });

  test('libvirt does not let this user in', async () => {
    const { code, stderr } = await withVirsh(
      `echo 'error: failed to connect to the hypervisor' >&2
      echo 'error: authentication unavailable: no polkit agent available' >&2
      exit 1`,
    );
    assert.equal(code, EXIT.permission.code, stderr);
    assert.match(stderr, /no polkit agent/);
  });

  test('there is no such domain', async () => {
    const { code, stderr } = await withVirsh(
      `while read -r command rest; do
        case "$command $rest" in
          'echo --err '*) echo "error: \${rest#--err }" >&2;;
          echo*) echo "$rest";;
          *) echo "error: failed to get domain 'web'" >&2;;
        esac
      done`,
    );
    assert.equal(code, EXIT.noSuchVm.code, stderr);
    assert.match(stderr, /failed to get domain 'web'/);
  });

  test('it says nothing: that is a time-out, and it is not left behind', async () => {
    const mark = join(directory, 'pid');
    const { code, stderr } = await withVirsh(`echo $$ >${mark}; exec sleep 1000`);
    assert.equal(code, EXIT.timeout.code, stderr);
    assert.match(stderr, /did not answer domuuid/);
    assert.ok(existsSync(mark), 'it was started');
    const pid = Number(readFileSync(mark, 'utf8'));
    // Killed is not yet gone.
    for (const deadline = Date.now() + PATIENCE_MS; runs(pid); ) {
      assert.ok(Date.now() < deadline, 'virsh is left');
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  });
});
