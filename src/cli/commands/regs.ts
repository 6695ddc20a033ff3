import { KVM_ERRNO } from '../../abi/index.ts';
import { KvmiError } from '../../error.ts';
import { integer, type Parse } from '../../input/values.ts';
import { requireCapability } from '../../machine/index.ts';
import { formatHex } from '../../rows/columns.ts';
import type { Guest, GuestVcpu, Registers } from '../../tool/index.ts';
import { ReplyError } from '../../wire/index.ts';
import { command, defaultOption, flag, repeatedOption } from '../command.ts';
import { withGuest } from '../guest-session.ts';
import { generalRows, msrIndex, msrRows, systemRows } from '../registers.ts';
import { OPTIONAL_VM } from '../targets.ts';

/** A vCPU by index, or all of them. */
export const vcpuOrAll: Parse<number | 'all'> = (text) =>
  text === 'all' ? 'all' : integer('--vcpu', 0, 4095)(text);

/** @throws KvmiError with code E_USAGE when there is no such vCPU. */
export function vcpuOf(guest: Guest, index: number): GuestVcpu {
  const vcpu = guest.vcpus[index];
  if (vcpu) return vcpu;
  throw new KvmiError('E_USAGE', `there is no vCPU ${index}: the VM has ${guest.vcpus.length}`, {
    hint: 'vCPUs count from 0.',
  });
}

/** Undefined when the guest has not started the vCPU yet. */
async function registersOf(vcpu: GuestVcpu, msrs: readonly number[]): Promise<Registers | undefined> {
  try {
    return await vcpu.registers(msrs);
  } catch (error) {
    if (error instanceof ReplyError && error.errno === KVM_ERRNO.KVM_EAGAIN) return undefined;
    throw error;
  }
}

function notStarted(vcpu: GuestVcpu): KvmiError {
  return new KvmiError('E_NOT_STARTED', `the guest has not started vCPU ${vcpu.index} yet`, {
    hint: '`--vcpu all` shows those that run.',
  });
}

export const regs = command({
  name: 'regs',
  summary: 'show the registers of vCPUs',
  description: ['Each vCPU leaves the guest for a moment; all of its values are of the same moment.'],
  arguments: [OPTIONAL_VM],
  options: {
    vcpu: defaultOption('--vcpu <N|all>', 'which vCPU', vcpuOrAll, 0),
    msr: repeatedOption('--msr <INDEX>', 'an MSR too, by index or name (lstar); repeatable', msrIndex),
    all: flag('-a, --all', 'control registers, segments and descriptor tables, too'),
  },
  examples: [
    { command: 'kvmi regs VM', does: 'general registers of vCPU 0' },
    { command: 'kvmi regs VM --vcpu all --all', does: 'everything, of every vCPU' },
    {
      command: 'kvmi regs VM --msr lstar -o json',
      does: 'where system calls enter the kernel, for a program',
    },
  ],
  columns: [
    { name: 'vcpu', kind: 'decimal', about: 'index of the vCPU' },
    { name: 'group', kind: 'text', wide: true, about: 'general, control, segment, table or msr' },
    { name: 'register', kind: 'text', key: true, about: 'name of the register' },
    { name: 'value', kind: 'hex', about: 'its value; the selector of a segment, the base of a table' },
    {
      name: 'meaning',
      kind: 'text',
      about: 'the flags that are set, the signed number, or the rest of a segment',
    },
  ],
  async *text(rows, theme) {
    let current: unknown;
    for await (const { vcpu, register, value, meaning } of rows) {
      if (vcpu !== current) yield theme.bold(`${current === undefined ? '' : '\n'}vCPU ${vcpu}`);
      current = vcpu;
      const hex = formatHex(value as bigint);
      yield `${theme.cyan(String(register).padEnd(15))}${hex.padEnd(19)}${meaning}`.trimEnd();
    }
  },
  run(context, [vm], { vcpu, msr, all }) {
    return withGuest(context, vm, async function* (guest, machine) {
      requireCapability(machine.capabilities, 'registers');
      const vcpus = vcpu === 'all' ? guest.vcpus : [vcpuOf(guest, vcpu)];
      for (const each of vcpus) {
        const registers = await registersOf(each, msr);
        if (!registers && vcpu !== 'all') throw notStarted(each);
        if (!registers) {
          context.partial(`vCPU ${each.index} was not started yet`);
          continue;
        }
        yield* generalRows(each.index, registers);
        if (all) yield* systemRows(each.index, registers);
        yield* msrRows(each.index, registers, msr);
      }
    });
  },
});
