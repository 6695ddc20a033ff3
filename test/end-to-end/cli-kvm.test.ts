import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { listen } from '../../src/tool/index.ts';
import { KvmiProcess, kvmi } from '../kit/kvmi-process.ts';
import { compile, hasProgram, missing, type Qemu, start, startQemu, temporaryFolder } from '../kvm/kit.ts';

/* The command line on stock KVM. */

const KVMI = join(import.meta.dirname, '..', '..', '..', 'bin', 'kvmi');
/** Of test/kvm/requests.c. */
const NOT_SUPPORTED = 3;
const DISABLED = 4;
/** Of test/kvm/counter.S: where the guest counts, and a word that it writes first. */
const COUNTER = 0x10000;
const MAGIC = '494d564b';

function reasonOf(...programs: readonly string[]): string | false {
  const reason = missing(...programs);
  if (reason) console.log(`skipped: ${reason}`);
  return reason ?? false;
}

describe('kvmi run', { skip: reasonOf('gcc') }, () => {
  const folder = temporaryFolder();
  const run = (...words: readonly string[]) => start(process.execPath, [KVMI, 'run', ...words]);
  let requests: string;

  before(() => {
    requests = compile('requests', folder);
  });

  it('answers the requests of a program that the kernel refuses', async () => {
    const without = await start(requests, ['v12']).finished;
    assert.equal(without.code, NOT_SUPPORTED, without.stdout);
    const { code, stdout, stderr } = await run('--', requests, 'v12').finished;
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, /all requests were answered as specified/);
    assert.equal(stderr, '', 'kvmi itself says nothing');
  });

  it('-v shows its log on standard error, --dialect says what the program speaks', async () => {
    const { code, stdout, stderr } = await run('-v', '--dialect', 'v9', '--', requests, 'v9').finished;
    assert.equal(code, 0, stdout + stderr);
    assert.match(stderr, /^kvmi: running .*requests v9$/m);
    assert.doesNotMatch(stdout, /kvmi:/);
  });

  it('--disabled refuses everything', async () => {
    const { code, stdout } = await run('--disabled', '--', requests, 'v9').finished;
    assert.equal(code, DISABLED, stdout);
  });

  it('leaves stdio, arguments and exit code to the program', async () => {
    const cat = run('--', 'sh', '-c', 'cat; echo "$@" >&2; exit 7', 'sh', '-v', '--help');
    cat.process.stdin!.end('through the pipe');
    const { code, stdout, stderr } = await cat.finished;
    assert.deepEqual(
      { code, stdout, stderr },
      { code: 7, stdout: 'through the pipe', stderr: '-v --help\n' },
    );
  });

  it('does not make the pipes of the program non-blocking', async () => {
    // The requests are answered by kvmi at work; what it does to the pipes is done then.
    const script = `${requests} v12 >/dev/null; for fd in 0 1 2; do grep flags /proc/self/fdinfo/$fd; done`;
    const flags = ['sh', '-c', script];
    const bare = await start(flags[0]!, flags.slice(1)).finished;
    for (const options of [[], ['-v']]) {
      const { stdout } = await run(...options, '--', ...flags).finished;
      assert.equal(stdout, bare.stdout);
    }
  });

  it('passes SIGTERM on, leaves SIGINT to the terminal, and tells by which signal the program ended', async () => {
    const trapping = run('--', 'sh', '-c', 'trap "exit 9" TERM; echo ready; while :; do sleep 0.01; done');
    await trapping.printed('ready');
    trapping.process.kill('SIGINT');
    trapping.process.kill('SIGTERM');
    assert.equal((await trapping.finished).code, 9);
    assert.equal((await run('--', 'sh', '-c', 'kill -KILL $$').finished).code, 128 + 9);
  });

  it('Ctrl-C reaches the program once, and kvmi ends as the program does', async () => {
    const script = 'trap "exit 11" INT; echo ready; while :; do sleep 0.01; done';
    const group = spawn(process.execPath, [KVMI, 'run', '--', 'sh', '-c', script], {
      detached: true,
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 30_000,
    });
    await new Promise((resolve) => group.stdout.once('data', resolve));
    const ended = new Promise((resolve) => group.once('exit', resolve));
    process.kill(-group.pid!, 'SIGINT');
    assert.equal(await ended, 11);
  });

  it('--timeout ends the program', async () => {
    const { code } = await run('--timeout', '1', '--', 'sleep', '25').finished;
    assert.equal(code, EXIT.timeout.code);
  });

  it('says what is wrong when there is nothing to run', async () => {
    const none = await run().finished;
    assert.equal(none.code, EXIT.usage.code);
    assert.match(none.stderr, /the program is missing.*\[E_USAGE\]/);
    const absent = await run('--', 'kvmi-no-such-program').finished;
    assert.equal(absent.code, EXIT.usage.code);
    assert.match(absent.stderr, /there is no such program.*\[E_NOT_FOUND\]/);
  });
});

describe('kvmi with a QEMU -accel kvm', { skip: reasonOf('gcc', 'qemu-system-x86_64') }, () => {
  const folder = temporaryFolder();
  let qemu: Qemu;
  let target: string;

  before(async () => {
    qemu = await startQemu(folder);
    target = `kvm:${qemu.pid}`;
    await untilAsync(async () => (await read(COUNTER + 4)) === MAGIC, 'the guest has started');
  });
  after(() => qemu?.kill());

  async function succeed(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await kvmi(args);
    assert.equal(code, EXIT.ok.code, `kvmi ${args.join(' ')}: ${stderr}`);
    return stdout;
  }
  async function rows(...args: readonly string[]): Promise<Record<string, unknown>[]> {
    return (JSON.parse(await succeed(...args, '-o', 'json')) as { rows: Record<string, unknown>[] }).rows;
  }
  /** A word of guest memory, in hexadecimal, in the order of its bytes. */
  async function read(gpa: number): Promise<string> {
    return (await succeed('read', target, `0x${gpa.toString(16)}`, '4', '--physical', '--hex')).trim();
  }
  /** The guest runs, untraced. */
  async function counts(): Promise<void> {
    const from = await read(COUNTER);
    await untilAsync(async () => (await read(COUNTER)) !== from, 'the guest counts on');
  }
  async function untilAsync(condition: () => Promise<boolean>, what: string): Promise<void> {
    const deadline = performance.now() + 30_000;
    while (!(await condition())) assert.ok(performance.now() < deadline, `not within 30 s: ${what}`);
  }

  it('list shows it once, with the target kvm:PID', async () => {
    const found = await rows('list', '--filter', `pid=${qemu.pid}`);
    assert.equal(found.length, 1);
    assert.deepEqual([found[0]?.target, found[0]?.reason, found[0]?.vcpus], [target, null, 1]);
  });

  it('doctor shows what KVM needs', async () => {
    const checks = new Map((await rows('doctor')).map((row) => [row.check, row]));
    assert.equal(checks.get('/dev/kvm')?.severity, 'ok');
    for (const check of ['trace', 'pidfd', 'seccomp', 'confined', 'BTF', 'BPF', 'userfaultfd']) {
      assert.ok(checks.get(check)?.enables, check);
      assert.ok(
        checks.get(check)?.severity === 'ok' || checks.get(check)?.remedy,
        `${check} says how to get it`,
      );
    }
    assert.match(String(checks.get('/dev/kvm')?.found), /Intel VMX|AMD SVM|PVM|no vendor module/);
  });

  for (const how of ['kvm:PID', 'a bare pid']) {
    it(`info and regs by ${how}`, async () => {
      const vm = how === 'kvm:PID' ? target : String(qemu.pid);
      const info = await rows('info', vm);
      assert.equal(info.find(({ name }) => name === 'vcpus')?.value, 1);
      const regs = await rows('regs', vm, '--all');
      const cs = regs.find(({ register }) => register === 'cs');
      assert.match(String(cs?.meaning), /f0000/, 'it runs its BIOS in real mode');
      await counts();
    });
  }

  it('write and read', async () => {
    await succeed('write', target, '0x20000', 'cafe', '--physical', '--allow-write');
    assert.equal((await read(0x20000)).slice(0, 4), 'cafe');
  });

  it('without the right to BPF, too', { skip: hasProgram('setpriv') ? false : 'needs setpriv' }, async () => {
    const without = async (...args: readonly string[]): Promise<Record<string, unknown>[]> => {
      const command = [
        '--bounding-set=-sys_admin,-bpf,-perfmon',
        process.execPath,
        KVMI,
        ...args,
        '-o',
        'json',
      ];
      const { code, stdout, stderr } = await start('setpriv', command).finished;
      assert.equal(code, EXIT.ok.code, `kvmi ${args.join(' ')}: ${stderr}`);
      return (JSON.parse(stdout) as { rows: Record<string, unknown>[] }).rows;
    };
    const doctor = await without('doctor');
    assert.equal(doctor.find(({ check }) => check === 'BPF')?.severity, 'info');
    const [row] = await without('list', '--filter', `pid=${qemu.pid}`);
    assert.deepEqual([row?.target, row?.vcpus], [target, 1]);
    const memory = (rows: Record<string, unknown>[]) => rows.find(({ name }) => name === 'memory')?.value;
    assert.deepEqual(memory(await without('info', target)), memory(await rows('info', target)));
    const regs = await without('regs', target, '--all');
    assert.match(String(regs.find(({ register }) => register === 'cs')?.meaning), /f0000/);
    await counts();
  });

  it('attach serves a tool until Ctrl-C; then the guest counts on', async () => {
    const server = await listen(`unix:${join(folder, 'tool')}`);
    const attach = new KvmiProcess(['attach', String(qemu.pid), '--tool', server.address]);
    try {
      const { value: guest } = await server[Symbol.asyncIterator]().next();
      assert.ok(guest);
      const { rip } = await guest.vcpus[0]!.registers();
      assert.ok(rip < 0x10000n, `rip ${rip}`);
      attach.kill('SIGINT');
      const { code, stderr } = await attach.ended;
      assert.equal(code, EXIT.interrupted.code, stderr);
      await counts();
    } finally {
      attach.kill('SIGKILL');
      await attach.ended;
      await server.close();
    }
  });

  it('attach refuses what is no VMM', async () => {
    const none = await kvmi(['attach', String(process.pid), '--tool', 'unix:/nowhere']);
    assert.equal(none.code, EXIT.noSuchVm.code);
    assert.match(none.stderr, /has no VM.*\[E_NO_VM\]\nhint: /);
    const wrong = await kvmi(['attach', 'web', '--tool', 'unix:/nowhere']);
    assert.equal(wrong.code, EXIT.usage.code);
  });
});
