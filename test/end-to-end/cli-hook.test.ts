import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { kernelSymbol } from '../../src/drivers/embedded/index.ts';
import { type Guest, type ListenOptions, listen, type ToolServer } from '../../src/tool/index.ts';
import { ReplyError } from '../../src/wire/index.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';

/* `kvmi hook` in a process of its own; this process is the tool. */

const directory = mkdtempSync(join(tmpdir(), 'kvmi-hook-'));
after(() => rmSync(directory, { recursive: true, force: true }));

let sockets = 0;
function freshAddress(): string {
  sockets++;
  return `unix:${join(directory, `tool-${sockets}`)}`;
}

function cookieFile(content: string, mode = 0o600): string {
  const path = join(directory, `cookie-${mode}-${content}`);
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
}

async function nextGuest(server: ToolServer): Promise<Guest> {
  const { value } = await server[Symbol.asyncIterator]().next();
  assert.ok(value, 'a guest connects');
  return value;
}

interface Hooked {
  readonly server: ToolServer;
  readonly guest: Guest;
  readonly process: KvmiProcess;
}

/** Runs `use` with a tool that the embedded machine is hooked to, and takes all of it down. */
async function hooked(
  args: readonly string[],
  use: (hooked: Hooked) => Promise<void>,
  options: ListenOptions = {},
): Promise<void> {
  const server = await listen(freshAddress(), options);
  const process = new KvmiProcess(['hook', 'embedded:', '--tool', server.address, ...args]);
  try {
    await use({ server, guest: await nextGuest(server), process });
  } finally {
    process.kill('SIGKILL');
    await process.ended;
    await server.close();
  }
}

function refused(errno: string) {
  return (error: unknown) => error instanceof ReplyError && error.errnoName === errno;
}

describe('kvmi hook', { concurrency: 2 }, () => {
  test('serves a tool until it unhooks', async () => {
    await hooked([], async ({ guest, process }) => {
      assert.equal(guest.name, 'embedded');
      assert.equal(guest.memoryMap, undefined);
      const { rip } = await guest.vcpus[0]!.registers();
      assert.ok(rip > 0n);
      let hits = 0;
      const enough = new Promise<void>((resolve) => {
        void guest.breakpoints.set(kernelSymbol('timer'), () => {
          hits++;
          if (hits === 3) resolve();
        });
      });
      await enough;
      await guest.detach();
      const { code, stdout, stderr } = await process.ended;
      assert.equal(code, EXIT.ok.code);
      assert.equal(stdout, '');
      assert.match(stderr, /kvmi: embedded \([0-9a-f-]{36}\): connected to unix:/);
      assert.match(stderr, /embedded \([0-9a-f-]{36}\): unhooked: the tool hung up/);
      assert.doesNotMatch(stderr, /cookie/, 'nobody else can be at the other end of that socket');
    });
  });

  for (const dialect of ['v7', 'v9', 'v12'] as const) {
    test(`speaks dialect ${dialect}`, async () => {
      const use = async ({ guest }: Hooked) => {
        assert.ok((await guest.vcpus[0]!.registers()).rip > 0n);
      };
      await hooked(['--dialect', dialect], use, { dialect });
    });
  }

  test('--send-memory-map sends it', async () => {
    await hooked(['--send-memory-map'], async ({ guest }) => {
      assert.deepEqual(guest.memoryMap, [{ address: 0, length: 16 << 20, type: 1 }]);
    });
  });

  test('--log-format json makes each line of the log JSON', async () => {
    await hooked(['--log-format', 'json'], async ({ guest, process }) => {
      await guest.detach();
      const lines = (await process.ended).stderr.trim().split('\n');
      for (const line of lines) assert.equal((JSON.parse(line) as { v: number }).v, 1);
      assert.ok(lines.length >= 2);
    });
  });
});

describe('kvmi hook: cookies', { concurrency: 2 }, () => {
  test('a tool that knows the cookie is served', async () => {
    const cookie = new TextEncoder().encode('secret');
    const use = async ({ guest, process }: Hooked) => {
      await guest.vcpus[0]!.registers();
      await guest.detach();
      const { stderr } = await process.ended;
      assert.doesNotMatch(stderr, /no cookie/);
    };
    await hooked(['--cookie-file', cookieFile('secret\n')], use, { cookie });
  });

  for (const [name, cookie] of [
    ['another cookie', new TextEncoder().encode('wrong')],
    ['no cookie', undefined],
  ] as const) {
    test(`a tool with ${name} is refused`, async () => {
      const errors: Error[] = [];
      const options = { onError: (error: Error) => errors.push(error), ...(cookie && { cookie }) };
      const server = await listen(freshAddress(), options);
      const args = ['hook', 'embedded:', '--tool', server.address, '--cookie-file', cookieFile('secret')];
      const { code, stderr } = await kvmi(args);
      await server.close();
      assert.equal(code, EXIT.peer.code, stderr);
      assert.match(stderr, /does not know the cookie \[E_HANDSHAKE\]/);
    });
  }

  test('without one there is a warning where others can be at the other end', async () => {
    const open = mkdtempSync(join(tmpdir(), 'kvmi-hook-open-'));
    chmodSync(open, 0o755);
    const server = await listen(`unix:${join(open, 'tool')}`);
    chmodSync(join(open, 'tool'), 0o666);
    try {
      const process = new KvmiProcess(['hook', 'embedded:', '--tool', server.address]);
      await (await nextGuest(server)).detach();
      assert.match(
        (await process.ended).stderr,
        /warning: embedded .*: no cookie is set: any tool is accepted/,
      );
    } finally {
      await server.close();
      rmSync(open, { recursive: true, force: true });
    }
  });

  test('a cookie file that others may read is refused before anything is connected', async () => {
    const { code, stderr } = await kvmi([
      ...['hook', 'embedded:', '--tool', freshAddress()],
      ...['--cookie-file', cookieFile('secret', 0o644)],
    ]);
    assert.equal(code, EXIT.permission.code);
    assert.match(stderr, /permissions 0644 are too open/);
    assert.match(stderr, /hint: chmod 600/);
  });
});

describe('kvmi hook: permissions', { concurrency: 2 }, () => {
  test('only commands that were allowed are carried out', async () => {
    await hooked(['--allow-commands', 'VM_GET_INFO,VM_READ_PHYSICAL,vcpu_get_info'], async ({ guest }) => {
      await guest.memory.readBytes(0x100000, 16);
      await assert.rejects(guest.vcpus[0]!.registers(), refused('KVM_EPERM'));
    });
  });

  test('only events that were allowed are reported', async () => {
    await hooked(['--allow-events', 'PAUSE,CR'], async ({ guest }) => {
      await guest.enable('CR');
      await assert.rejects(guest.enable('MSR'), refused('KVM_EPERM'));
      await guest.disable('CR');
    });
  });
});

describe('kvmi hook: ends', { concurrency: 2 }, () => {
  test('nobody listens', async () => {
    const { code, stderr } = await kvmi(['hook', 'embedded:', '--tool', freshAddress()]);
    assert.equal(code, EXIT.peer.code);
    assert.match(stderr, /\[E_CONNECT\]\nhint: .*Start the tool first/);
  });

  test('--reconnect waits for the tool, and hooks again when it comes back', async () => {
    const address = freshAddress();
    const process = new KvmiProcess(['hook', 'embedded:', '--tool', address, '--reconnect', '0.1']);
    await process.seen('stderr', /trying again every 0.1 s/);
    const server = await listen(address);
    const first = await nextGuest(server);
    await first.detach();
    await process.seen('stderr', /unhooked: the tool hung up/);
    const second = await nextGuest(server);
    assert.deepEqual(second.uuid, first.uuid, 'it is the same machine');
    await second.vcpus[0]!.registers();
    process.kill('SIGINT');
    assert.equal((await process.ended).code, EXIT.interrupted.code);
    await second.closed;
    await server.close();
  });

  test('Ctrl-C unhooks, also while it tries to connect', async () => {
    const process = new KvmiProcess(['hook', 'embedded:', '--tool', freshAddress(), '--reconnect', '60']);
    await process.seen('stderr', /trying again/);
    process.kill('SIGINT');
    assert.equal((await process.ended).code, EXIT.interrupted.code);
  });

  test('Ctrl-C with a tool that holds a vCPU in an event', async () => {
    await hooked([], async ({ guest, process }) => {
      const paused = await guest.pause();
      process.kill('SIGINT');
      const { code } = await process.ended;
      assert.equal(code, EXIT.interrupted.code);
      await guest.closed;
      paused.resume();
    });
  });

  test('a tool that is killed is unhooked', async () => {
    const address = freshAddress();
    const script = join(import.meta.dirname, 'tool-process.js');
    const tool = spawn(process.execPath, [script, address, String(kernelSymbol('timer'))], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    try {
      const hook = new KvmiProcess(['hook', 'embedded:', '--tool', address, '--reconnect', '0.05']);
      await new Promise<void>((resolve) => {
        tool.stdout!.on('data', (chunk: Buffer) => chunk.includes('armed') && resolve());
      });
      tool.kill('SIGKILL');
      await hook.seen('stderr', /unhooked: the tool hung up/);
      hook.kill('SIGTERM');
      assert.equal((await hook.ended).code, EXIT.terminated.code);
    } finally {
      tool.kill('SIGKILL');
    }
  });

  test('--event-timeout unhooks a tool that does not answer', async () => {
    await hooked(['--event-timeout', '0.3'], async ({ guest, process }) => {
      guest.on('CR', () => new Promise(() => {}));
      await guest.enable('CR');
      await guest.vcpus[0]!.controlCr(3, true);
      const { code, stderr } = await process.ended;
      assert.equal(code, EXIT.timeout.code, stderr);
      assert.match(stderr, /owed an answer/);
    });
  });
});
