import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { KvmiError } from '../../../error.ts';
import { lives, type ProcessIdentity } from '../../../system/proc.ts';
import { runtimeDirectory } from '../../../system/runtime-directory.ts';
import type { Patch } from '../patches.ts';
import type { QmpAddress } from '../qmp.ts';
import type { StubPlan } from '../stub.ts';
import { Workspace } from '../workspace.ts';
import type { BorrowedVcpu } from './borrowed-vcpu.ts';
import { parseState } from './journal-format.ts';
import { exists, keyOf, type VmIdentity } from './vm-identity.ts';

/** What has to be undone in a VM, and what is needed for it. */
export interface JournalState {
  readonly vm: VmIdentity;
  readonly monitor: QmpAddress;
  /** Who does what is written here, and who undoes it when that one is killed. */
  readonly host: ProcessIdentity;
  readonly guard: ProcessIdentity;
  readonly tcg: boolean;
  /** Where the workspace is, or will be. */
  readonly workspace: string;
  /** The gdbstub that is attached, or about to be. */
  readonly stub: StubPlan;
  /** False while somebody else has paused the VM. */
  readonly running: boolean;
  readonly patches: readonly Patch[];
  /** Where a vCPU is that has just been delivered #BP, in hexadecimal. */
  readonly handlers: readonly string[];
  readonly borrowed: BorrowedVcpu | null;
  /** The migration capability `events` was off, and is on. */
  readonly migrationEvents: boolean;
  /** Block nodes that were added. */
  readonly nodes: readonly string[];
}

const NAME = /^journal-[0-9a-f]{16}$/;
const LIMIT = 4 << 20;
const OTHERS = 0o077;

/**
 * The journal of one VM: a file in the runtime directory that is there while something of this process is in that VM.
 * It is replaced as a whole, so that whoever reads it reads one state or the next.
 */
export class Journal {
  readonly path: string;
  #state: JournalState;

  /** Writes the first state. E_BUSY when the VM has a journal of somebody else, which has to be undone first. */
  constructor(state: JournalState) {
    this.path = journalPath(state.vm);
    this.#state = state;
    const other = readJournal(this.path);
    if (other) throw unrepaired(other);
    this.#write();
  }

  get state(): JournalState {
    return this.#state;
  }

  /** To be called before what it announces is done. */
  update(change: Partial<JournalState>): void {
    this.#state = { ...this.#state, ...change };
    this.#write();
  }

  /** Nothing is left to undo. */
  remove(): void {
    rmSync(this.path, { force: true });
  }

  #write(): void {
    const text = JSON.stringify(this.#state);
    if (text.length > LIMIT) throw new KvmiError('E_GUARD', 'there are too many breakpoints to be guarded');
    const next = `${this.path}.next`;
    rmSync(next, { force: true });
    const fd = openSync(next, 'wx', 0o600);
    try {
      writeSync(fd, text);
    } finally {
      closeSync(fd);
    }
    renameSync(next, this.path);
  }
}

/** @throws KvmiError with code E_GUARD without a directory that is private: what is there may be anybody's. */
export function journalPath(vm: VmIdentity): string {
  const directory = runtimeDirectory();
  if (directory !== undefined) return join(directory, `journal-${keyOf(vm)}`);
  throw new KvmiError('E_GUARD', 'there is no place for the journal that a guard needs', {
    hint: '/run/kvmi, $XDG_RUNTIME_DIR/kvmi or /tmp/kvmi-UID has to be a directory of this user that nobody else can enter.',
  });
}

/** What a journal says; undefined when there is none, or none that this user has written. */
export function readJournal(path: string): JournalState | undefined {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
  try {
    const file = fstatSync(fd);
    const { uid, mode, size } = file;
    if (!file.isFile() || uid !== process.geteuid?.() || (mode & OTHERS) !== 0 || size > LIMIT)
      return undefined;
    const bytes = Buffer.alloc(size);
    return parseState(bytes.toString('utf8', 0, readSync(fd, bytes, 0, size, 0)));
  } catch {
    return undefined;
  } finally {
    closeSync(fd);
  }
}

/** The journals of this user, by path. Those of VMs that have ended are removed, with what they name on this host. */
export function journals(): ReadonlyMap<string, JournalState> {
  const found = new Map<string, JournalState>();
  const directory = runtimeDirectory();
  if (directory === undefined) return found;
  for (const name of readdirSync(directory).filter((each) => NAME.test(each))) {
    const path = join(directory, name);
    const state = readJournal(path);
    if (!state) continue;
    if (exists(state.vm, state.monitor)) found.set(path, state);
    else if (!lives(state.guard)) {
      new Workspace(undefined, state.workspace).remove();
      rmSync(path, { force: true });
    }
  }
  return found;
}

/** The process that undoes what a journal names, or will; undefined when it is left to whoever finds it. */
export function keeperOf({ host, guard }: JournalState): ProcessIdentity | undefined {
  return [host, guard].find(lives);
}

function unrepaired(state: JournalState): KvmiError {
  const keeper = keeperOf(state);
  if (keeper) {
    return new KvmiError('E_BUSY', `the VM is being left by another kvmi (process ${keeper.pid})`, {
      hint: 'Wait until it has ended.',
      data: { holder: keeper.pid },
    });
  }
  return new KvmiError('E_REPAIR', 'a kvmi that was killed has left something in the VM', {
    hint: 'Run `kvmi repair VM`.',
  });
}
