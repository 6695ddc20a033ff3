import { KvmiError, UsageError } from '../../error.ts';
import { integer, place } from '../../input/values.ts';
import { readVirtual } from '../../machine/index.ts';
import type { Row } from '../../rows/columns.ts';
import { argument, command, defaultOption, flag, optionalArgument } from '../command.ts';
import type { Context } from '../context.ts';
import { withGuest } from '../guest-session.ts';
import { withLinux } from '../linux.ts';
import { checkRange, Holes, physicalAddress, type ReadMemory, readRange } from '../memory.ts';
import { hexdump, hexRows } from '../output/hexdump.ts';
import { withMachine } from '../session.ts';
import { addressOf } from '../symbols.ts';
import { VM } from '../targets.ts';
import { vcpuOf } from './regs.ts';

const DEFAULT_SIZE = 256;
const HEX_BYTES_PER_LINE = 32;

interface Form {
  readonly raw: boolean;
  readonly hex: boolean;
  readonly physical: boolean;
}

/** From here on every process of a guest sees the same. */
const KERNEL_HALF = 1n << 63n;

/** The rows, or others when somebody else holds the VM. */
async function* unlessHeld(
  rows: AsyncIterable<Row>,
  others: (held: KvmiError) => AsyncIterable<Row>,
): AsyncGenerator<Row> {
  try {
    yield* rows;
  } catch (error) {
    if (!(error instanceof KvmiError) || error.code !== 'E_BUSY') throw error;
    yield* others(error);
  }
}

/** Writes what was read as the user wants it, or makes rows of it. */
async function* printed(
  context: Context,
  read: ReadMemory,
  start: bigint,
  size: number,
  form: Form,
): AsyncGenerator<Row> {
  const holes = new Holes(form.physical ? 'no memory' : 'not mapped', (reason) => context.partial(reason));
  for await (const piece of readRange(read, start, size)) {
    if (context.signal.aborted) return;
    holes.note(piece);
    if (form.raw) await context.write(piece.bytes ?? new Uint8Array(piece.size));
    else if (!piece.bytes) continue;
    else if (form.hex) await context.write(hexText(piece.bytes));
    else yield* hexRows(piece.address, piece.bytes);
  }
  holes.end();
}

function hexText(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length; at += HEX_BYTES_PER_LINE) {
    text += `${Buffer.from(bytes.subarray(at, at + HEX_BYTES_PER_LINE)).toString('hex')}\n`;
  }
  return text;
}

export const read = command({
  name: 'read',
  summary: 'read guest memory',
  description: [
    'Addresses are virtual, translated with the page tables of a vCPU, or physical. Physical memory is read without ' +
      'hooking the VM, and so are addresses of a Linux kernel while something else holds the VM. Pages that are not there are left out, and filled with zeros with --raw; each is reported.',
  ],
  arguments: [
    VM,
    argument('ADDRESS', 'where to start: 0xffffffff81000000, or a symbol of the kernel: linux_banner', place),
    optionalArgument(
      'SIZE',
      `bytes, with K, M or G if you like (default: ${DEFAULT_SIZE})`,
      integer('SIZE', 1),
    ),
  ],
  options: {
    physical: flag('-p, --physical', 'ADDRESS is guest-physical'),
    vcpu: defaultOption(
      '--vcpu <N>',
      'whose page tables translate the address',
      integer('--vcpu', 0, 4095),
      0,
    ),
    raw: flag('--raw', 'the bytes themselves; not to a terminal'),
    hex: flag('--hex', 'hexadecimal digits without addresses'),
  },
  examples: [
    { command: 'kvmi read VM linux_banner 64', does: 'a hexdump of what is at a symbol of a Linux kernel' },
    {
      command: 'kvmi read VM 0 1M --physical --raw >low.bin',
      does: 'the first MiB of physical memory to a file',
    },
    { command: 'kvmi read VM 0x1000 16 --physical -o json', does: 'for a program' },
  ],
  columns: [
    { name: 'address', kind: 'hex', key: true, about: 'of the first byte of the row' },
    { name: 'bytes', kind: 'bytes', about: 'at most 16 bytes, as hexadecimal digits' },
    { name: 'text', kind: 'text', about: 'the same as ASCII, a dot for what is not printable' },
  ],
  text: hexdump,
  run(context, [vm, start, size = DEFAULT_SIZE], { physical, vcpu, raw, hex }) {
    if (raw && hex) throw new UsageError('--raw and --hex exclude each other');
    if (raw && context.terminal) {
      throw new UsageError('--raw would write bytes to a terminal', 'Redirect it: >FILE, or use --hex.');
    }
    const form = { raw, hex, physical };
    if (physical) {
      const gpa = physicalAddress(start);
      checkRange(gpa, size, physical);
      return withMachine(context, vm, ({ memory }) =>
        printed(context, (at, into) => memory.read(Number(at), into), gpa, size, form),
      );
    }
    const hooked = withGuest(context, vm, async function* (guest, _machine, addressOf) {
      const { memory } = vcpuOf(guest, vcpu);
      const gva = await addressOf(start);
      checkRange(gva, size, physical);
      yield* printed(context, (at, into) => memory.read(at, into), gva, size, form);
    });
    if (start.symbol === undefined && start.offset < KERNEL_HALF) return hooked;
    return unlessHeld(hooked, (held) =>
      withLinux(context, vm, { types: undefined }, async function* (linux, { memory }) {
        context.log.info(`${held.message}: translated with the kernel's own page tables`);
        const gva = await addressOf(start, async (name) => linux.symbols.require(name));
        checkRange(gva, size, physical);
        const { paging } = linux.kernel;
        yield* printed(context, (at, into) => readVirtual(memory, paging, at, into), gva, size, form);
      }),
    );
  },
});
