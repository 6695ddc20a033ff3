import type { Action, EventReplyData } from '../wire/index.ts';

/** How an event ended: with the tool's answer, without one, or with one that it may not have. */
export interface EventOutcome {
  readonly action: Action | 'lost' | 'invalid';
  readonly data: EventReplyData;
}

export const LOST: EventOutcome = { action: 'lost', data: {} };
export const INVALID: EventOutcome = { action: 'invalid', data: {} };
