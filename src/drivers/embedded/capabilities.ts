import { CAPABILITY_NAMES, type Capabilities } from '../../machine/index.ts';

/** Everything, but what the embedded machine has no use for. */
export const CAPABILITIES: Capabilities = {
  ...(Object.fromEntries(CAPABILITY_NAMES.map((name) => [name, true])) as Record<keyof Capabilities, true>),
  'virtualization-exception': 'the embedded machine always reports a denied access and never raises #VE',
};
