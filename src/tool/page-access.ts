import { ACCESS, type Gpa, PAGE_SIZE } from '../machine/index.ts';
import { MAX_PAYLOAD } from '../wire/index.ts';
import type { Requests } from './requests.ts';

/** What a page may be used for, by the guest. */
export interface PageAccess {
  /** Any address in the page. */
  readonly gpa: Gpa;
  /** `ACCESS` bits that are allowed; `ACCESS.all` lifts the restriction. */
  readonly access: number;
  /** Dialect v9: an address without memory is an error only when this is set. */
  readonly visible?: boolean;
}

const HEAD_SIZE = 8;
const ENTRY_SIZE = 16;
/** Entries of one command. */
const MAX_ENTRIES = Math.floor((MAX_PAYLOAD - HEAD_SIZE) / ENTRY_SIZE);

/** Restrictions of page access, and what is needed to lift them all. */
export class PageAccessTable {
  readonly #requests: Requests;
  /** By view, the pages that are restricted. */
  readonly #restricted = new Map<number, Set<Gpa>>();

  constructor(requests: Requests) {
    this.#requests = requests;
  }

  /** Sets all entries, in as many commands as it takes; they are sent before the call returns. */
  async set(entries: readonly PageAccess[], view: number): Promise<void> {
    this.#remember(entries, view);
    const sent: unknown[] = [];
    for (let at = 0; at < entries.length; at += MAX_ENTRIES) {
      const part = entries.slice(at, at + MAX_ENTRIES).map(({ gpa, access, visible }) => ({
        gpa,
        access,
        visible: Number(visible ?? false),
      }));
      sent.push(this.#send(part, view));
    }
    await Promise.all(sent);
  }

  async #send(entries: { gpa: Gpa; access: number; visible: number }[], view: number): Promise<void> {
    await this.#requests.send('VM_SET_PAGE_ACCESS', { view, count: entries.length, entries });
  }

  #remember(entries: readonly PageAccess[], view: number): void {
    let pages = this.#restricted.get(view);
    if (!pages) {
      pages = new Set();
      this.#restricted.set(view, pages);
    }
    for (const { gpa, access } of entries) {
      const page = gpa - (gpa % PAGE_SIZE);
      if (access === ACCESS.all) pages.delete(page);
      else pages.add(page);
    }
  }

  /** Lifts every restriction. */
  async lift(): Promise<void> {
    const views = [...this.#restricted];
    await Promise.all(
      views.map(([view, pages]) =>
        this.set(
          [...pages].map((gpa) => ({ gpa, access: ACCESS.all })),
          view,
        ),
      ),
    );
  }
}
