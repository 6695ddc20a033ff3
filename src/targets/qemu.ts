import type { LeftBehind } from '../drivers/qemu/index.ts';
import { KvmiError, UsageError } from '../error.ts';
import type { Machine } from '../machine/index.ts';
import type { OpenOptions, Target } from './target.ts';

/** What there is to say about what a kvmi that was killed has left. */
function reporter({ onLeft, log }: OpenOptions): (left: LeftBehind) => void {
  if (onLeft) return onLeft;
  return (left) => {
    if (left.kind === 'repaired')
      log?.warn(
        'a kvmi that was killed had left something in the VM: it is repaired, and runs unless it was paused then',
      );
    if (left.kind === 'failed')
      log?.warn(
        `a kvmi that was killed has left something in the VM, and it cannot be repaired: ${left.reason}`,
      );
    if (left.kind === 'in-hands' && !left.host)
      log?.warn(`a kvmi was killed; its guard (process ${left.pid}) is about to repair the VM`);
  };
}

/** Errors of a connection that mean: nobody is there. */
const ABSENT: ReadonlySet<unknown> = new Set(['ENOENT', 'ECONNREFUSED']);

/** A QMP socket that nobody listens at is a VM that does not exist. */
function asNoVm(error: unknown, path: string): unknown {
  if (!(error instanceof KvmiError) || error.code !== 'E_QMP_CONNECT') return error;
  const { code } = (error.cause ?? {}) as NodeJS.ErrnoException;
  if (!ABSENT.has(code)) return error;
  return new KvmiError('E_NO_VM', `there is no VM at the QMP socket ${path}`, {
    hint: 'Start QEMU with -qmp unix:PATH,server=on,wait=off, and give that path.',
    data: { path },
    cause: error,
  });
}

/** Any QEMU, by its monitor socket. */
export const QEMU_TARGET: Target = {
  prefix: 'qemu',
  syntax: 'PATH',
  about: 'a QEMU by its QMP socket (-qmp unix:PATH,server=on,wait=off)',
  async open(path, options): Promise<Machine> {
    if (path === '') throw new UsageError('qemu: the path of a QMP socket is missing', 'qemu:/run/vm.qmp');
    const { openQemu } = await import('../drivers/qemu/index.ts');
    try {
      return await openQemu({ qmp: path }, reporter(options));
    } catch (error) {
      throw asNoVm(error, path);
    }
  },
};

/** A QEMU whose monitor libvirt holds, by the name of its domain. */
export const LIBVIRT_TARGET: Target = {
  prefix: 'libvirt',
  syntax: 'DOMAIN',
  about: 'a running QEMU domain of libvirt, through virsh',
  async open(domain, options): Promise<Machine> {
    if (domain === '') throw new UsageError('libvirt: the name of a domain is missing', 'libvirt:DOMAIN');
    const { openQemu } = await import('../drivers/qemu/index.ts');
    return openQemu({ libvirt: domain }, reporter(options));
  },
};
