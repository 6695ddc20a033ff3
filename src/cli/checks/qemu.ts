import { discover, type FoundVm, handleOf } from '../discover.ts';
import { type Check, type Finding, ok } from './check.ts';

function vmFinding(vm: FoundVm): Finding {
  const about = `${handleOf(vm)} ${vm.name}`.trim();
  if (vm.target !== undefined) return { ...ok(`reachable by ${vm.target}`), about };
  return {
    severity: 'warning',
    about,
    found: vm.reason ?? 'not reachable',
    remedy: 'Start QEMU with -qmp unix:PATH,server=on,wait=off, one for each client.',
  };
}

async function vmFindings(): Promise<readonly Finding[]> {
  const found = await discover();
  if (found.length === 0) return [{ severity: 'info', found: 'no VM runs on this host' }];
  return found.map(vmFinding);
}

export const QEMU_CHECKS: readonly Check[] = [
  { name: 'vm', enables: 'hooking that VM', examine: vmFindings },
];
