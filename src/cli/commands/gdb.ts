import { mkdtempSync, rmSync } from 'node:fs';
import { isIP } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UsageError } from '../../error.ts';
import { type GdbServerOptions, listenGdb } from '../../gdb/index.ts';
import { text } from '../../input/values.ts';
import { requireCapability } from '../../machine/index.ts';
import type { Row } from '../../rows/columns.ts';
import type { Guest } from '../../tool/index.ts';
import { parseAddress } from '../../transport/index.ts';
import { command, flag, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { withGuest } from '../guest-session.ts';
import { unlessAborted } from '../interruption.ts';
import { OPTIONAL_VM } from '../targets.ts';

/** Whoever connects owns the guest: over the network only when that was asked for. */
function checkListen(listen: string, remote: boolean): void {
  const address = parseAddress(listen);
  if (address.kind !== 'tcp' || remote || isLoopback(address.host)) return;
  throw new UsageError(
    `--listen: ${address.host} is not a loopback address, and GDB's protocol has no passwords`,
    'Use tcp:127.0.0.1:PORT and a tunnel (`ssh -L`), or add --remote.',
  );
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

/** `target remote` takes a path, or HOST:PORT. */
function targetOf(listening: string): string {
  return listening.slice(listening.indexOf(':') + 1);
}

interface Serving {
  readonly listen: string | undefined;
  readonly once: boolean;
}

/** Serves GDBs until told to end, the guest is gone, or the first of them left. */
async function serve(context: Context, guest: Guest, { listen, once }: Serving): Promise<void> {
  const { signal, log } = context;
  const directory =
    listen === undefined
      ? mkdtempSync(join(context.env.XDG_RUNTIME_DIR ?? tmpdir(), 'kvmi-gdb-'))
      : undefined;
  try {
    let left = (): void => {};
    const detached = new Promise<void>((resolve) => {
      left = resolve;
    });
    const options: GdbServerOptions = {
      onError: (error) => log.warn(error.message),
      onSession(state) {
        log.info(
          state === 'attached'
            ? 'GDB attached: the guest is stopped'
            : 'GDB left: its breakpoints are removed',
        );
        if (state === 'detached' && once) left();
      },
    };
    const server = await listenGdb(guest, listen ?? `unix:${join(directory!, 'gdb')}`, options);
    try {
      await context.write(`target remote ${targetOf(server.address)}\n`);
      await unlessAborted(Promise.race([guest.closed, detached]), signal);
    } finally {
      await server.close();
    }
  } finally {
    if (directory) rmSync(directory, { recursive: true, force: true });
  }
}

export const gdb = command({
  name: 'gdb',
  summary: 'let GDB debug a VM',
  description: [
    'Hooks the VM, listens, and prints the line to give to GDB. While GDB is attached the guest is stopped or runs as GDB ' +
      'says: threads are vCPUs, memory is what the selected vCPU sees, break and stepi work in the kernel and in programs. ' +
      'When GDB detaches, quits, kills or vanishes, breakpoints are removed and the guest runs on; the next GDB may come. ' +
      'Ctrl-C ends.',
    'Whoever can connect can read and change the whole guest. The default is a socket in a new directory that only its ' +
      'owner can enter; other addresses than loopback ones are only listened on with --remote.',
  ],
  arguments: [OPTIONAL_VM],
  options: {
    listen: valueOption(
      '--listen <ADDRESS>',
      'unix:PATH or tcp:127.0.0.1:PORT; port 0 takes a free one',
      text,
    ),
    remote: flag('--remote', 'let --listen be an address that other hosts can reach'),
    once: flag('--once', 'end when the first GDB has left'),
  },
  examples: [
    { command: 'kvmi gdb VM', does: 'prints `target remote PATH`' },
    { command: 'kvmi gdb VM --listen tcp:127.0.0.1:1234', does: 'then `gdb -ex "target remote :1234"`' },
    { command: 'kvmi gdb embedded:2 --once --listen unix:/tmp/vm', does: 'one session' },
  ],
  columns: [],
  run(context, [vm], { listen, remote, once }) {
    if (listen !== undefined) checkListen(listen, remote);
    // biome-ignore lint/correctness/useYield: there are no rows
    return withGuest(context, vm, async function* (guest, machine): AsyncGenerator<Row> {
      requireCapability(machine.capabilities, 'registers');
      await serve(context, guest, { listen, once });
    });
  },
});
