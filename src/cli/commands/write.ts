import { readFileSync } from 'node:fs';
import type { Awaitable } from '../../awaitable.ts';
import { KvmiError, messageOf, UsageError } from '../../error.ts';
import { hexBytes, integer, place, text } from '../../input/values.ts';
import { requireCapability } from '../../machine/index.ts';
import { formatHex, type Row } from '../../rows/columns.ts';
import { argument, command, defaultOption, flag, optionalArgument, valueOption } from '../command.ts';
import { withGuest } from '../guest-session.ts';
import { checkRange, physicalAddress, type ReadMemory } from '../memory.ts';
import { withMachine } from '../session.ts';
import { VM } from '../targets.ts';
import { vcpuOf } from './regs.ts';

/** More is hardly meant, and would have to be held in memory twice. */
const LIMIT = 64 << 20;
/** What was there before is printed when it is not longer. */
const BEFORE_LIMIT = 256;

type WriteMemory = (address: bigint, from: Uint8Array) => Awaitable<boolean>;

function bytesToWrite(hex: Uint8Array | undefined, file: string | undefined): Uint8Array {
  if ((hex === undefined) === (file === undefined)) {
    throw new UsageError('give either BYTES or --file', "kvmi write VM 0x1000 '90 90' --allow-write");
  }
  if (hex) return hex;
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(readFileSync(file!));
  } catch (error) {
    throw new UsageError(`--file ${file}: ${messageOf(error)}`);
  }
  if (bytes.length === 0) throw new UsageError(`--file ${file}: it is empty`);
  if (bytes.length > LIMIT) throw new UsageError(`--file ${file}: more than ${LIMIT} bytes`);
  return bytes;
}

async function* written(
  read: ReadMemory,
  write: WriteMemory,
  start: bigint,
  bytes: Uint8Array,
): AsyncGenerator<Row> {
  const before = new Uint8Array(bytes.length);
  const readable = await read(start, before);
  if (!readable || !(await write(start, bytes))) {
    throw new KvmiError('E_NOT_BACKED', `${bytes.length} bytes at ${formatHex(start)} cannot be written`, {
      hint: 'The range has a hole, is read-only, or is not mapped; `kvmi info VM` shows the memory map.',
    });
  }
  yield { address: start, size: bytes.length, ...(before.length <= BEFORE_LIMIT && { before }) };
}

export const write = command({
  name: 'write',
  summary: 'write guest memory',
  description: [
    'The range is written as a whole or not at all where it lies in one page. What was there before is printed when ' +
      `it is at most ${BEFORE_LIMIT} bytes, so that it can be put back.`,
  ],
  arguments: [
    VM,
    argument('ADDRESS', 'where to start; a symbol of the kernel, too', place),
    optionalArgument('BYTES', "hexadecimal: 90cc or '90 cc'", hexBytes),
  ],
  options: {
    allowWrite: flag('--allow-write', 'required: the command changes the guest'),
    file: valueOption('--file <FILE>', 'the bytes of a file instead of BYTES', text),
    physical: flag('-p, --physical', 'ADDRESS is guest-physical'),
    vcpu: defaultOption(
      '--vcpu <N>',
      'whose page tables translate the address',
      integer('--vcpu', 0, 4095),
      0,
    ),
  },
  examples: [
    { command: 'kvmi write VM 0xffffffff81234560 90 --allow-write', does: 'one byte of kernel code' },
    { command: 'kvmi write VM 0x200000 --file patch.bin --physical --allow-write', does: 'a file' },
  ],
  columns: [
    { name: 'address', kind: 'hex', key: true, about: 'where it was written' },
    { name: 'size', kind: 'decimal', about: 'bytes that were written' },
    { name: 'before', kind: 'bytes', about: `what was there before, when at most ${BEFORE_LIMIT} bytes` },
  ],
  run(context, [vm, start, hex], { allowWrite, file, physical, vcpu }) {
    const bytes = bytesToWrite(hex, file);
    if (!allowWrite) {
      throw new KvmiError('E_NEEDS_ALLOW', 'writing changes the guest, and may crash it', {
        hint: 'Add --allow-write when that is what you want.',
      });
    }
    if (physical) {
      const gpa = physicalAddress(start);
      checkRange(gpa, bytes.length, physical);
      return withMachine(context, vm, ({ memory, capabilities }) => {
        requireCapability(capabilities, 'memory-write');
        return written(
          (at, into) => memory.read(Number(at), into),
          (at, from) => memory.write(Number(at), from),
          gpa,
          bytes,
        );
      });
    }
    return withGuest(context, vm, async function* (guest, { capabilities }, addressOf) {
      requireCapability(capabilities, 'memory-write');
      const { memory } = vcpuOf(guest, vcpu);
      const gva = await addressOf(start);
      checkRange(gva, bytes.length, physical);
      yield* written(
        (at, into) => memory.read(at, into),
        (at, from) => memory.write(at, from),
        gva,
        bytes,
      );
    });
  },
});
