import { basename } from 'node:path';
import { keyOf } from '../../src/drivers/qemu/guard/vm-identity.ts';
import type { QmpConnection } from '../../src/drivers/qemu/qmp.ts';
import { identityOf as identityOfSocket, offerPath } from '../../src/drivers/qemu/sharing/offer-path.ts';
import { identityOf } from '../../src/system/proc.ts';
import { KernelText, type Shown, symbolsOf } from '../kit/kernel-text.ts';
import { LinuxGuest, type LinuxGuestOptions } from '../kit/linux-guest.ts';
import { addSnapshotDisk } from '../kit/snapshot-disk.ts';

/** What some misfortunes and host sides take: a QEMU that nobody manages, a tool of its own, a libvirt of its own. */
export type Need = 'direct' | 'tool' | 'libvirt';

/** A guest to which things happen, and what it was like before. */
export interface Subject extends Shown {
  readonly offers: readonly Need[];
  readonly pid: number;
  /** How kvmi names it, and what it needs in its environment for that. */
  readonly target: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly monitor: Pick<QmpConnection, 'execute' | 'hmp'>;
  /** A function of its kernel that is executed all the time. */
  readonly symbol: string;
  readonly text: KernelText;
  /** How the names of files begin that kvmi makes for it in the runtime directory. */
  readonly fileNames: readonly string[];
  /** Of a QEMU with a QMP socket of its own: that, and where `symbol` is. */
  readonly direct: { readonly qmp: string; readonly gva: bigint; readonly gpa: number } | undefined;
  /** Changes while the guest runs. */
  readonly clock: number;
  readonly log: readonly string[];
  /** libvirt's daemon. */
  readonly daemon?: number;
  /** The state in `stream`, in a QEMU of its own; where nobody manages it. */
  continued?(stream: string): Promise<Subject>;
  kill(): Promise<void>;
}

const SYMBOL = '__x64_sys_getuid';
const CALLS = '(while true; do id -u >/dev/null; usleep 5000; done) &';

/** A guest in a QEMU that nobody manages. Its kernel is where it was when it starts anew. */
export class PlainSubject implements Subject {
  static readonly offers = ['direct', 'tool'] as const;
  readonly offers = PlainSubject.offers;
  readonly target: string;
  readonly environment = {};
  readonly symbol = SYMBOL;
  readonly text: KernelText;
  readonly fileNames: readonly string[];
  readonly direct: NonNullable<Subject['direct']>;
  readonly #vm: LinuxGuest;
  readonly #options: LinuxGuestOptions;

  static async boot(smp: number): Promise<PlainSubject> {
    // A kernel that finds its time-stamp counter unstable after a jump would change its own text.
    const options = { smp, append: 'nokaslr tsc=unstable' };
    const vm = await LinuxGuest.boot(options);
    await vm.run(Array(smp).fill(CALLS).join(' '));
    return PlainSubject.#of(vm, options);
  }

  static async #of(vm: LinuxGuest, options: LinuxGuestOptions): Promise<PlainSubject> {
    await addSnapshotDisk(vm);
    await vm.monitor.execute('migrate-set-parameters', { 'max-bandwidth': 1e10 });
    const { [SYMBOL]: gva } = await symbolsOf(vm, [SYMBOL]);
    const printed = await vm.monitor.hmp(`gva2gpa 0x${gva!.toString(16)}`);
    const gpa = Number(/gpa: (0x[0-9a-f]+)/.exec(printed)![1]);
    const { UUID } = (await vm.monitor.execute('query-uuid')) as { UUID: string };
    return new PlainSubject(vm, options, await KernelText.of(vm), UUID, { qmp: vm.qmp, gva: gva!, gpa });
  }

  private constructor(
    vm: LinuxGuest,
    options: LinuxGuestOptions,
    text: KernelText,
    uuid: string,
    direct: NonNullable<Subject['direct']>,
  ) {
    this.#vm = vm;
    this.#options = options;
    this.target = `qemu:${vm.qmp}`;
    this.text = text;
    this.direct = direct;
    const socket = identityOfSocket(vm.qmp);
    const journal = `journal-${keyOf({ uuid, ...identityOf(vm.pid)!, socket, peer: null })}`;
    this.fileNames = [journal, basename(offerPath(socket)!)];
  }

  get pid(): number {
    return this.#vm.pid;
  }

  get directory(): string {
    return this.#vm.directory;
  }

  get monitor(): LinuxGuest['monitor'] {
    return this.#vm.monitor;
  }

  get clock(): number {
    return this.#vm.ticks;
  }

  get log(): readonly string[] {
    return this.#vm.log;
  }

  async continued(stream: string): Promise<Subject> {
    const vm = await LinuxGuest.boot({ ...this.#options, incoming: stream });
    return PlainSubject.#of(vm, this.#options);
  }

  kill(): Promise<void> {
    return this.#vm.kill();
  }
}
