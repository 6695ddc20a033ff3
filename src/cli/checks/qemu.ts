import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { findMachines, handleOf } from '../../targets/find.ts';
import type { FoundMachine } from '../../targets/found.ts';
import { type Check, type Finding, ok } from './check.ts';

function onPath(program: string): string | undefined {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .map((directory) => join(directory, program))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

function virshFinding(): Finding {
  const path = onPath('virsh');
  if (path) return ok(path);
  return {
    severity: 'info',
    found: 'virsh is not installed',
    remedy: 'Needed for libvirt domains only: apt-get install libvirt-clients',
  };
}

function vmFinding(vm: FoundMachine): Finding {
  const about = `${handleOf(vm)} ${vm.name}`.trim();
  if (vm.target !== undefined) return { ...ok(`reachable by ${vm.target}`), about };
  return {
    severity: 'warning',
    about,
    found: vm.reason ?? 'not reachable',
    ...(vm.remedy !== undefined && { remedy: vm.remedy }),
  };
}

async function vmFindings(): Promise<readonly Finding[]> {
  const found = await findMachines();
  if (found.length === 0) return [{ severity: 'info', found: 'no VM runs on this host' }];
  return found.map(vmFinding);
}

export const QEMU_CHECKS: readonly Check[] = [
  { name: 'virsh', enables: 'libvirt:DOMAIN', examine: virshFinding },
  { name: 'vm', enables: 'hooking that VM', examine: vmFindings },
];
