import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { identityOf, lives, type ProcessIdentity } from '../../src/system/proc.ts';
import { guardsOf } from '../kit/guarded.ts';
import type { Random } from './random.ts';
import type { Scene } from './scene.ts';
import type { Need, Subject } from './subject.ts';

/** Something that happens to a hooked guest, or to one of those who are about it. */
export interface Misfortune {
  readonly name: string;
  readonly weight: number;
  /** Of those that happen to the VM there is one at a time. */
  readonly vm: boolean;
  readonly needs?: Need;
  happen(scene: Scene, random: Random): Promise<void>;
}

const STOPPED_MS = 2000;
const PAUSED_MS = 1000;
/** A QEMU stands still for up to a minute: half of the times less than 60 ms, one time of six more than 10 s. */
const STILL_MS = 60_000;
const STILL_POWER = 10;

const WHOM: readonly {
  readonly name: string;
  readonly needs?: Need;
  processes(scene: Scene): readonly ProcessIdentity[];
}[] = [
  { name: 'host', processes: ({ host }) => [host.process] },
  { name: 'guard', processes: ({ host }) => guards(host.process) },
  { name: 'both', processes: ({ host }) => [...guards(host.process), host.process] },
  { name: 'tool', needs: 'tool', processes: ({ host }) => [host.tool!] },
  { name: 'libvirtd', needs: 'libvirt', processes: ({ subject }) => [identityOf(subject.daemon!)!] },
];

const SIGNALS = [
  { name: 'KILL', weight: 4 },
  { name: 'STOP', weight: 2 },
  { name: 'TERM', weight: 2 },
  { name: 'INT', weight: 1 },
  { name: 'HUP', weight: 1 },
] as const;

export const MISFORTUNES: readonly Misfortune[] = [
  ...WHOM.flatMap((whom) =>
    SIGNALS.map(
      ({ name, weight }): Misfortune => ({
        name: `${whom.name}:${name}`,
        weight,
        vm: false,
        ...(whom.needs && { needs: whom.needs }),
        happen: (scene, random) => signalled(whom.processes(scene), name, random),
      }),
    ),
  ),
  {
    name: 'qemu:STOP',
    weight: 4,
    vm: true,
    async happen({ subject }, random) {
      await stopped([identityOf(subject.pid)!], random.time(STILL_MS, STILL_POWER));
    },
  },
  {
    name: 'vm:pause',
    weight: 5,
    vm: true,
    async happen(scene, random) {
      for (let times = 1 + Math.floor(random.time(3)); times > 0; times--) {
        await scene.pause();
        await sleep(random.time(PAUSED_MS, 2));
        await scene.goOn();
        await sleep(random.time(PAUSED_MS, 2));
      }
    },
  },
  { name: 'vm:stop', weight: 5, vm: true, happen: (scene) => scene.pause() },
  {
    name: 'stub:none',
    weight: 4,
    vm: true,
    async happen({ subject }) {
      await subject.monitor.hmp('gdbserver none');
    },
  },
  {
    name: 'vm:reset',
    weight: 1,
    vm: true,
    needs: 'direct',
    async happen(scene) {
      await scene.subject.monitor.execute('system_reset');
      // It is in its firmware for a while, in which nothing can be said of its kernel.
      scene.retire();
    },
  },
  {
    name: 'vm:savevm',
    weight: 2,
    vm: true,
    needs: 'direct',
    async happen(scene) {
      const { monitor } = scene.subject;
      const said = await monitor.hmp('savevm soak');
      // That it is refused is one of the answers.
      if (said !== '') return;
      scene.later(async () => {
        const problem = await monitor.hmp('loadvm soak');
        if (problem !== '') throw new Error(`loadvm: ${problem}`);
        await monitor.hmp('delvm soak');
      });
    },
  },
  {
    name: 'vm:migrate',
    weight: 2,
    vm: true,
    needs: 'direct',
    async happen(scene) {
      const { subject } = scene;
      const stream = join(subject.directory, 'stream');
      await subject.monitor.execute('migrate', { uri: `exec:cat >${stream}` });
      if (!(await migrated(subject))) return;
      scene.leave('postmigrate');
      scene.later(async () => {
        // It was over before kvmi could do anything: then the guest goes on here.
        if (/copy is not to be used/.test(scene.host.stderr)) return scene.goOn();
        const destination = await subject.continued!(stream);
        await subject.kill();
        scene.replace(destination);
      });
    },
  },
];

/** Waits until a migration has ended; false when it failed, or was not allowed. */
async function migrated({ monitor }: Subject): Promise<boolean> {
  for (;;) {
    const { status } = (await monitor.execute('query-migrate')) as { status?: string };
    if (status === 'completed') return true;
    if (status === undefined || status === 'failed' || status === 'cancelled') return false;
    await sleep(20);
  }
}

function guards({ pid }: ProcessIdentity): ProcessIdentity[] {
  return guardsOf(pid).flatMap((guard) => identityOf(guard) ?? []);
}

async function signalled(
  processes: readonly ProcessIdentity[],
  signal: (typeof SIGNALS)[number]['name'],
  random: Random,
): Promise<void> {
  if (signal === 'STOP') return stopped(processes, random.time(STOPPED_MS));
  // None of them sees the others' end.
  send(processes, 'SIGSTOP');
  send(processes, `SIG${signal}`);
  send(processes, 'SIGCONT');
}

async function stopped(processes: readonly ProcessIdentity[], time: number): Promise<void> {
  send(processes, 'SIGSTOP');
  try {
    await sleep(time);
  } finally {
    send(processes, 'SIGCONT');
  }
}

function send(processes: readonly ProcessIdentity[], signal: NodeJS.Signals): void {
  for (const process_ of processes.filter(lives)) process.kill(process_.pid, signal);
}
