import { type Capabilities, capabilitiesOf } from '../../machine/index.ts';

/** Everything, but what the embedded machine has no use for. */
export const CAPABILITIES: Capabilities = {
  ...capabilitiesOf(() => true),
  'virtualization-exception': 'the embedded machine always reports a denied access and never raises #VE',
};
