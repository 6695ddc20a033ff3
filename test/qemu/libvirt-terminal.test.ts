import { whyNoLibvirt } from '../kit/libvirt.ts';
import { LibvirtDomain } from '../kit/libvirt-domain.ts';
import { whyNoLinuxGuest } from '../kit/linux-guest.ts';
import { describeTerminal, type Subject } from './terminal-cases.ts';

async function libvirt(): Promise<Subject> {
  const domain = await LibvirtDomain.start(`kvmi-terminal-${process.pid}`);
  return {
    target: domain.target,
    environment: domain.environment,
    get journal() {
      return domain.journal;
    },
    unharmed: (when, journal) => domain.unharmed(when, journal),
    freeze: () => domain.libvirt.freeze(),
    stop: () => domain.stop(),
  };
}

describeTerminal('a libvirt domain', libvirt, whyNoLinuxGuest() ?? whyNoLibvirt());
