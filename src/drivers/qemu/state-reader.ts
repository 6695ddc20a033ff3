import { messageOf } from '../../error.ts';
import type { CpuState } from './cpu-state.ts';
import { DEVICE_STATE_LIMIT, parseDeviceState } from './device-state.ts';
import type { GdbClient } from './gdb.ts';
import type { QmpConnection } from './qmp.ts';
import { readRegistersState } from './registers-state.ts';
import { SavedCpu } from './saved-cpu.ts';
import type { Workspace } from './workspace.ts';

/** Registers that both the gdbstub and the device state have, and whose values tell whether the layout is right. */
const CHECKED = { rip: 'rip', cr3: 'cr3', efer: 'efer', fs_base: 0xc0000100, gs_base: 0xc0000101 } as const;

/**
 * Reads the state of all vCPUs at once, while they are stopped.
 *
 * QEMU hands out everything that it knows of its vCPUs through `xen-save-devices-state`, which any VM supports, in the
 * format of its migration stream. That format is not described in the file; so the first state is compared
 * with the gdbstub, and when they differ the gdbstub and `info registers` serve instead.
 */
export class StateReader {
  /** Why the device state is not used; undefined while it is. */
  failure: string | undefined;
  readonly #qmp: QmpConnection;
  readonly #workspace: Workspace;
  readonly #vcpus: () => readonly number[];
  readonly #tcg: boolean;
  readonly #onStop: () => void;
  #checked = false;

  /** `vcpus`: which there are. `onStop` is told of each command that stops the VM on its way, also when it is stopped. */
  constructor(
    qmp: QmpConnection,
    workspace: Workspace,
    vcpus: () => readonly number[],
    tcg: boolean,
    onStop: () => void = () => {},
  ) {
    this.#qmp = qmp;
    this.#workspace = workspace;
    this.#vcpus = vcpus;
    this.#tcg = tcg;
    this.#onStop = onStop;
  }

  /** By vCPU. */
  async read(gdb: GdbClient): Promise<ReadonlyMap<number, CpuState>> {
    if (this.failure === undefined) {
      try {
        const states = await this.#readDeviceState();
        if (!this.#checked) this.failure = await difference(states, gdb);
        this.#checked = true;
        if (this.failure === undefined) return states;
      } catch (error) {
        this.failure = `QEMU's device state cannot be used: ${messageOf(error)}`;
      }
    }
    return readRegistersState(this.#qmp, gdb, this.#vcpus());
  }

  /** `live` must be false: true would prepare QEMU's disks for another process. */
  #readDeviceState(): Promise<ReadonlyMap<number, SavedCpu>> {
    const vcpus = this.#vcpus();
    return this.#workspace.receive(
      DEVICE_STATE_LIMIT,
      (filename) => {
        this.#onStop();
        return this.#qmp.execute('xen-save-devices-state', { filename, live: false });
      },
      (bytes) =>
        new Map(
          parseDeviceState(bytes, vcpus.length).map((sections, i) => [
            vcpus[i]!,
            new SavedCpu(sections, this.#tcg),
          ]),
        ),
    );
  }
}

/** What differs between the device state and the gdbstub, as a sentence; undefined when nothing does. */
async function difference(
  states: ReadonlyMap<number, SavedCpu>,
  gdb: GdbClient,
): Promise<string | undefined> {
  for (const [vcpu, state] of states) {
    for (const [name, source] of Object.entries(CHECKED)) {
      const saved = typeof source === 'number' ? state.msr(source) : state.register(source);
      const live = await gdb.readRegister(vcpu, name);
      if (saved !== live) {
        return `QEMU's device state has another format: ${name} of vCPU ${vcpu} would be 0x${saved?.toString(16)}, not 0x${live.toString(16)}`;
      }
    }
  }
  return undefined;
}
