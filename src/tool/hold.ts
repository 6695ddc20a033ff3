import type { GuestVcpu } from './vcpu.ts';

/** Stops vCPUs and keeps them stopped until the result is called. All or none: when one cannot be stopped, none is kept. */
export async function holdAll(vcpus: readonly GuestVcpu[]): Promise<() => void> {
  const results = await Promise.allSettled(vcpus.map((vcpu) => vcpu.stop.hold()));
  const releases = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const release = () => {
    for (const each of releases) each();
  };
  const failed = results.find((result) => result.status === 'rejected');
  if (!failed) return release;
  release();
  throw failed.reason;
}
