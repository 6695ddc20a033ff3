import { KvmiError, messageOf } from '../../error.ts';
import { VCPU_LIMIT } from './gdb.ts';
import { uuidOf } from './guard/vm-identity.ts';
import { findQemuProcess } from './process.ts';
import { type QmpTransport, recordOf, recordsOf } from './qmp.ts';

/** What is asked of QEMU once, when the machine is opened. */
export interface QemuFacts {
  readonly name: string;
  /** As text. */
  readonly uuid: string;
  readonly tcg: boolean;
  readonly pid: number | undefined;
  readonly vcpus: readonly VcpuFacts[];
}

export interface VcpuFacts {
  readonly index: number;
  /** The TSC frequency in Hz, 0 when QEMU does not know it. */
  readonly tscHz: number;
}

/** E_QEMU_TARGET when it is no x86-64 machine, E_QEMU_FACTS when QEMU does not say what it should. */
export async function readFacts(qmp: QmpTransport): Promise<QemuFacts> {
  const [name, uuid, kvm, vcpus, pid] = await Promise.all([
    qmp.execute('query-name'),
    uuidOf(qmp),
    qmp.execute('query-kvm'),
    readVcpus(qmp),
    findQemuProcess(qmp),
  ]);
  const { name: given } = recordOf(name, 'the name');
  return {
    name: typeof given === 'string' && given !== '' ? given : qmp.where,
    uuid,
    tcg: recordOf(kvm, 'the accelerator').enabled !== true,
    pid,
    vcpus,
  };
}

/** The vCPUs that there are now, by index; there may be gaps. */
export async function readVcpus(qmp: QmpTransport): Promise<VcpuFacts[]> {
  const list = recordsOf(await qmp.execute('query-cpus-fast'), 'the list of vCPUs');
  const foreign = list.find(({ target }) => target !== 'x86_64');
  if (list.length === 0 || foreign !== undefined) {
    throw new KvmiError('E_QEMU_TARGET', `QEMU at ${qmp.where} emulates ${foreign?.target}, not x86_64`);
  }
  const vcpus = list.map(async (cpu) => {
    const path = String(cpu['qom-path']);
    return { index: vcpuIndex(cpu['cpu-index']), tscHz: await readTscFrequency(qmp, path) };
  });
  return (await Promise.all(vcpus)).sort((a, b) => a.index - b.index);
}

function vcpuIndex(value: unknown): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < VCPU_LIMIT) return value;
  throw new KvmiError('E_QEMU_FACTS', `QEMU numbers a vCPU ${String(value)}`);
}

async function readTscFrequency(qmp: QmpTransport, path: string): Promise<number> {
  try {
    const hz = await qmp.execute('qom-get', { path, property: 'tsc-frequency' });
    return typeof hz === 'number' ? hz : 0;
  } catch (error) {
    if (error instanceof KvmiError && error.code === 'E_QMP_COMMAND') return 0;
    throw new KvmiError('E_QEMU_FACTS', `${path}: ${messageOf(error)}`, { cause: error });
  }
}
