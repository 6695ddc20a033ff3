import { whyNoLibvirt } from '../kit/libvirt.ts';
import { LibvirtSubject } from './libvirt-subject.ts';
import type { Misfortune } from './misfortunes.ts';
import { PlainSubject, type Subject } from './subject.ts';

/** A kind of guest, and what can happen to it. */
export interface Ground {
  readonly misfortunes: readonly Misfortune[];
  boot(): Promise<Subject>;
}

const GROUNDS = [
  { offers: PlainSubject.offers, boot: () => PlainSubject.boot(2) },
  { offers: PlainSubject.offers, boot: () => PlainSubject.boot(1) },
  { offers: LibvirtSubject.offers, boot: () => LibvirtSubject.boot(), missing: whyNoLibvirt },
] as const;

/** Those that can be had here and to which something can happen; `leftOut` is told why one cannot. */
export function groundsFor(misfortunes: readonly Misfortune[], leftOut: (reason: string) => void): Ground[] {
  return GROUNDS.flatMap((ground) => {
    const { boot } = ground;
    const offers: readonly string[] = ground.offers;
    const possible = misfortunes.filter(({ needs }) => needs === undefined || offers.includes(needs));
    const reason = 'missing' in ground && possible.length > 0 ? ground.missing() : undefined;
    if (reason !== undefined) leftOut(reason);
    return possible.length > 0 && reason === undefined ? [{ misfortunes: possible, boot }] : [];
  });
}
