import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { compile, missing, runUnder, start, temporaryFolder } from './kit.ts';

const skip = missing('gcc');
const NOT_SUPPORTED = 3;
const DISABLED = 4;

describe('kvmi run', { skip: skip ?? false }, () => {
  const folder = temporaryFolder();
  let requests: string;
  let leaving: string;

  before(() => {
    requests = compile('requests', folder);
    leaving = compile('leaving', folder);
  });

  it('without it, the kernel knows nothing of the requests', async () => {
    const { code, stdout } = await start(requests, ['v9']).finished;
    assert.equal(code, NOT_SUPPORTED, stdout);
    assert.match(stdout, /Inappropriate ioctl/);
  });

  for (const series of ['v9', 'v12']) {
    it(`answers every request of ${series} as the kernel would`, async () => {
      const { code, stdout, stderr } = await runUnder([requests, series]).finished;
      assert.equal(code, 0, stdout + stderr);
      assert.match(stdout, /all requests were answered as specified/);
    });
  }

  for (const series of ['v9', 'v12']) {
    it(`refuses every request of ${series} when introspection is disabled`, async () => {
      const { code, stdout } = await runUnder([requests, series], ['--disabled']).finished;
      assert.equal(code, DISABLED, stdout);
    });
  }

  it("leaves the program's stdio and exit code alone", async () => {
    const run = runUnder(['sh', '-c', 'cat; echo error >&2; exit 7']);
    run.process.stdin!.end('through the pipe');
    const { code, stdout, stderr } = await run.finished;
    assert.deepEqual({ code, stdout, stderr }, { code: 7, stdout: 'through the pipe', stderr: 'error\n' });
  });

  it('passes SIGTERM on, and tells by which signal the program ended', async () => {
    const run = runUnder(['sh', '-c', 'trap "exit 9" TERM; echo ready; while :; do sleep 0.01; done']);
    await run.printed('ready');
    run.process.kill('SIGTERM');
    assert.equal((await run.finished).code, 9);
    assert.equal((await runUnder(['sh', '-c', 'kill -KILL $$']).finished).code, 128 + 9);
  });

  it('says so when there is no such program', async () => {
    const { code, stderr } = await runUnder(['kvmi-no-such-program']).finished;
    assert.equal(code, 127);
    assert.match(stderr, /there is no such program/);
  });

  for (const [how, code] of [
    ['exit', 42],
    ['signal', 128 + 15],
    ['close', 42],
    ['exec', 0],
  ] as const) {
    it(`hangs up on the tool when the VMM ends its VM by ${how}`, async () => {
      const path = join(folder, `tool-${how}.sock`);
      const server = createServer().listen(path);
      const connected = once(server, 'connection') as Promise<[Socket]>;
      const run = runUnder([leaving, how, path]);
      const [tool] = await connected;
      tool.resume();
      const ended = once(tool, 'end');
      await run.printed('hooked');
      await ended;
      run.process.stdin!.end();
      assert.equal((await run.finished).code, code);
      tool.destroy();
      server.close();
    });
  }

  it('lets the VMM go on when the host side is killed', async () => {
    const path = join(folder, 'tool-killed.sock');
    const server = createServer().listen(path);
    const connected = once(server, 'connection') as Promise<[Socket]>;
    const run = runUnder([leaving, 'wait', path]);
    const [tool] = await connected;
    tool.resume();
    await run.printed('hooked');
    const ended = once(tool, 'end');
    run.process.kill('SIGKILL');
    await ended;
    run.process.stdin!.end();
    assert.match((await run.finished).stdout, /leaving/);
    tool.destroy();
    server.close();
  });
});
