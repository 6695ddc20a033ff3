import { KvmiError } from '../../error.ts';
import { type QmpConnection, recordOf, recordsOf } from './qmp.ts';
import { hasLeft } from './stub.ts';

/** A node that cannot have snapshots: QEMU names it when it refuses one. */
const BLOCKER = 'kvmi-int3-in-guest-memory';
const UNDER_WAY = new Set([
  'setup',
  'active',
  'device',
  'pre-switchover',
  'postcopy-active',
  'postcopy-paused',
  'postcopy-recover',
  'wait-unplug',
  'cancelling',
  'colo',
]);

/** What {@link MemoryCopies} tells its owner. */
export interface MemoryCopiesOwner {
  /** Guest memory was copied into a snapshot. */
  snapshot(): void;
  /** The VM is being migrated, or was. */
  migration(): void;
  /** Block nodes are about to be added, or were removed: which there are. */
  nodes(names: readonly string[]): void;
}

/**
 * Sees others copy guest memory.
 *
 * QEMU tells of snapshots and migrations by MIGRATION events, while the migration capability `events` is on. It makes a
 * snapshot in one go and carries out no command meanwhile: nothing can be taken out of guest memory once it has begun.
 * So `savevm` is made to fail while there is something in it. A migration sends again what is written after it was sent.
 */
export class MemoryCopies {
  readonly #qmp: QmpConnection;
  readonly #owner: MemoryCopiesOwner;
  #watching = false;
  /** The capability was off before. */
  #giveBack = false;
  #blocked = false;
  /** It is being found out what a MIGRATION event was about. */
  #asking = false;

  constructor(qmp: QmpConnection, owner: MemoryCopiesOwner) {
    this.#qmp = qmp;
    this.#owner = owner;
    qmp.onEvent(({ name, data }) => {
      if (name !== 'MIGRATION') return;
      void this.#migration(String(data.status)).catch(() => {});
    });
  }

  /** Whether snapshots are made to fail. */
  get blocked(): boolean {
    return this.#blocked;
  }

  /** Throws E_BUSY while a migration is under way. */
  async requireNone(): Promise<void> {
    if (!UNDER_WAY.has(await this.#status())) return;
    throw new KvmiError('E_BUSY', `the VM of QEMU at ${this.#qmp.where} is being migrated`, {
      hint: 'Wait until that is over, and hook the VM where it runs then.',
    });
  }

  /** Whether {@link watch} has to switch the capability on. */
  async isOff(): Promise<boolean> {
    const capabilities = recordsOf(await this.#qmp.execute('query-migrate-capabilities'), 'the capabilities');
    return capabilities.some(({ capability, state }) => capability === 'events' && state === false);
  }

  /** `off` as {@link isOff} says. */
  async watch(off: boolean): Promise<void> {
    this.#giveBack ||= off;
    this.#watching = true;
    if (off) await setMigrationEvents(this.#qmp, true);
  }

  /** The capability is as it was; QEMU does not allow that while a migration is under way: then it is after that. */
  async unwatch(): Promise<void> {
    this.#watching = false;
    await this.block(false);
    await this.#off();
  }

  /** Whether snapshots are to fail; to be called before something is written into guest memory. */
  async block(blocked: boolean): Promise<void> {
    if (this.#blocked === blocked) return;
    this.#blocked = blocked;
    if (blocked) {
      this.#owner.nodes([BLOCKER]);
      await this.#qmp
        .execute('blockdev-add', { driver: 'null-co', 'node-name': BLOCKER })
        .catch(ignoreRefusal);
    } else {
      await removeNodes(this.#qmp, [BLOCKER]);
      this.#owner.nodes(this.#blocked ? [BLOCKER] : []);
    }
  }

  async #migration(status: string): Promise<void> {
    if (!this.#watching) {
      if (!UNDER_WAY.has(status)) await this.#off();
      return;
    }
    if (this.#asking) return;
    this.#asking = true;
    try {
      // Answered when a snapshot has been made, however long that takes.
      const now = await patiently(() => this.#status());
      if (UNDER_WAY.has(now) || (await hasLeft(this.#qmp))) {
        this.#watching = false;
        this.#owner.migration();
      } else if (now === 'completed') this.#owner.snapshot();
    } finally {
      this.#asking = false;
    }
  }

  async #off(): Promise<void> {
    if (!this.#giveBack || this.#watching) return;
    await setMigrationEvents(this.#qmp, false)
      .then(() => {
        this.#giveBack = false;
      })
      .catch(ignoreRefusal);
  }

  async #status(): Promise<string> {
    return String(recordOf(await this.#qmp.execute('query-migrate'), 'the migration').status ?? 'none');
  }
}

/** Rejects with E_QMP_COMMAND while a migration is under way. */
export async function setMigrationEvents(qmp: QmpConnection, state: boolean): Promise<void> {
  await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state }] });
}

/** Removes block nodes that were added, or were to be. */
export async function removeNodes(qmp: QmpConnection, names: readonly string[]): Promise<void> {
  for (const name of names) await qmp.execute('blockdev-del', { 'node-name': name }).catch(ignoreRefusal);
}

async function patiently<T>(query: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await query();
    } catch (error) {
      if (!(error instanceof KvmiError && error.code === 'E_QMP_TIMEOUT')) throw error;
    }
  }
}

function ignoreRefusal(error: unknown): void {
  if (!(error instanceof KvmiError && error.code === 'E_QMP_COMMAND')) throw error;
}
