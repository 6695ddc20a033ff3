import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { AGENT_CODE, AGENT_ENTRY, SLOT } from './agent-code.ts';

const SOURCE = fileURLToPath(new URL('../../../../../src/drivers/kvm/thread/agent.S', import.meta.url));
const hasTools =
  process.arch === 'x64' &&
  ['as', 'objcopy', 'nm'].every((tool) => spawnSync(tool, ['--version']).status === 0);

it('the code of the agent is what agent.S assembles to', {
  skip: hasTools ? false : 'needs binutils for x86-64',
}, () => {
  const folder = mkdtempSync(join(tmpdir(), 'kvmi-agent-'));
  try {
    const object = join(folder, 'agent.o');
    const image = join(folder, 'agent.bin');
    execFileSync('as', ['-o', object, SOURCE]);
    execFileSync('objcopy', ['-O', 'binary', '-j', '.text', object, image]);
    assert.deepEqual(Buffer.from(AGENT_CODE), readFileSync(image));
    const symbols = execFileSync('nm', [object], { encoding: 'utf8' });
    for (const [name, offset] of Object.entries(AGENT_ENTRY)) {
      assert.match(symbols, new RegExp(`^0*${offset.toString(16).padStart(2, '0')} t ${name}$`, 'm'));
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

it('the parts of a slot do not overlap', () => {
  assert.ok(SLOT.msrs + 8 + 8 * 16 <= SLOT.vmFd);
  assert.ok(SLOT.calls + 32 * 64 <= SLOT.filterOn);
  assert.ok(SLOT.filterOff + 392 <= SLOT.filterBitmap && SLOT.filterBitmap + 8 <= 4096);
});
