import { formatSize } from '../rows/columns.ts';

/** How far something that takes a while has come. */
export interface ProgressState {
  readonly what: string;
  readonly done: number;
  /** Bytes in all. */
  readonly total: number;
}

/** Shows progress where a person sees it. */
export interface ProgressLine {
  show(state: ProgressState): void;
  /** Says what is being done now, at once: it may keep the process busy for a while. */
  say(what: string): void;
  /** Removes the line, before something else is written to the terminal. */
  clear(): void;
}

/** What is over sooner needs no line. */
const QUIET_MS = 400;
const REDRAW_MS = 100;
const BAR_WIDTH = 24;

export const NO_PROGRESS: ProgressLine = { show() {}, say() {}, clear() {} };

/** A line at the bottom of a terminal. */
export function progressLine(write: (text: string) => void): ProgressLine {
  let started: number | undefined;
  let drawn = 0;
  let visible = false;
  return {
    show(state) {
      const now = performance.now();
      started ??= now;
      if (now - started < QUIET_MS || now - drawn < REDRAW_MS) return;
      drawn = now;
      visible = true;
      write(`\r\x1b[K${progressText(state)}`);
    },
    say(what) {
      visible = true;
      write(`\r\x1b[K${what} …`);
    },
    clear() {
      started = undefined;
      if (visible) write('\r\x1b[K');
      visible = false;
    },
  };
}

function progressText({ what, done, total }: ProgressState): string {
  const share = total === 0 ? 1 : Math.min(1, done / total);
  const full = Math.round(share * BAR_WIDTH);
  const bar = '#'.repeat(full) + '-'.repeat(BAR_WIDTH - full);
  return `[${bar}] ${String(Math.floor(share * 100)).padStart(3)} %  ${formatSize(done)} of ${formatSize(total)}  ${what}`;
}
