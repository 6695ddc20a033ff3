import { changeGfnWithView } from '../wire/index.ts';
import type { Connection } from './connection.ts';
import type { GuestVcpu } from './vcpu.ts';

/**
 * Alternative views of guest-physical memory (dialect v7): each has its own page access and may show other frames.
 * View 0 always exists. Commands reject with a NotInDialectError in other dialects.
 */
export class GuestViews {
  readonly #connection: Connection;

  constructor(connection: Connection) {
    this.#connection = connection;
  }

  /** Makes a view and gives its number. */
  async create(): Promise<number> {
    return (await this.#connection.requests.send('VM_CREATE_EPT_VIEW', {})).view;
  }

  async destroy(view: number): Promise<void> {
    await this.#connection.requests.send('VM_DESTROY_EPT_VIEW', { view });
  }

  /** The view that a vCPU sees. */
  async current(vcpu: GuestVcpu): Promise<number> {
    return (await vcpu.command('VCPU_GET_EPT_VIEW', {})).view;
  }

  async switch(vcpu: GuestVcpu, view: number): Promise<void> {
    await vcpu.command('VCPU_SET_EPT_VIEW', { view });
  }

  /** Whether the guest may switch to a view on its own (VMFUNC). */
  async setVisible(vcpu: GuestVcpu, view: number, visible: boolean): Promise<void> {
    await vcpu.command('VCPU_CONTROL_EPT_VIEW', { view, visible: Number(visible) });
  }

  /** Shows frame `to` where the guest addresses frame `from`; the same frame twice restores it. */
  async changeGfn(vcpu: GuestVcpu, view: number, from: number, to: number): Promise<void> {
    const data = new Uint8Array(changeGfnWithView.size);
    changeGfnWithView.write(data, 0, { view, old_gfn: from, new_gfn: to });
    await vcpu.command('VCPU_CHANGE_GFN', { data });
  }
}
