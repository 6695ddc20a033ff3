import { KvmiError, messageOf } from '../../error.ts';
import { formatUuid, type ServeEnd, type ServeOptions, serve } from '../../host/index.ts';
import type { Machine } from '../../machine/index.ts';
import { connect, parseAddress } from '../../transport/index.ts';
import { DIALECTS, type DialectName } from '../../wire/index.ts';
import { command, defaultOption, flag, valueOption } from '../command.ts';
import type { Context } from '../context.ts';
import { readCookieFile } from '../cookie-file.ts';
import { exitOf, UsageError } from '../errors.ts';
import { EXIT } from '../exit-codes.ts';
import { pause, whenAborted } from '../interruption.ts';
import { commandNames, eventNames } from '../names.ts';
import type { Row } from '../output/columns.ts';
import { withMachine } from '../session.ts';
import { OPTIONAL_VM } from '../targets.ts';
import { oneOf, seconds, text } from '../values.ts';

const DIALECT_NAMES = Object.keys(DIALECTS) as DialectName[];

const ENDS: Readonly<Record<ServeEnd, string>> = {
  tool: 'the tool hung up',
  machine: 'the VM ended',
  aborted: 'told to end',
  stalled: 'the tool did not answer an event in time',
  suspend: 'the VM is being suspended',
  migrate: 'the VM is being migrated',
  shutdown: 'the VM is shutting down',
  reset: 'the VM is being reset',
};

/** After these the VM is there and may be hooked again. */
const MAY_COME_BACK: ReadonlySet<ServeEnd> = new Set(['tool', 'stalled', 'suspend', 'reset']);

interface Hooking {
  readonly tool: string;
  readonly reconnect: number | undefined;
  readonly options: Omit<ServeOptions, 'log' | 'signal'>;
}

/** Connects and serves until it ends. Undefined: the command was told to end before. */
async function serveOnce(
  context: Context,
  machine: Machine,
  { tool, options }: Hooking,
): Promise<ServeEnd | undefined> {
  const { signal, log } = context;
  const connecting = connect(tool);
  const channel = await Promise.race([connecting, whenAborted(signal)]);
  if (!channel) {
    connecting.then(
      (late) => late.shutdown(),
      () => {},
    );
    return undefined;
  }
  log.info(`${formatUuid(machine.uuid)} connected to ${tool}`);
  return serve(machine, channel, { ...options, log, signal });
}

/** The same again and again, as long as there is a point in it. */
async function serveOn(context: Context, machine: Machine, hooking: Hooking): Promise<ServeEnd | undefined> {
  const { signal, log } = context;
  const { reconnect } = hooking;
  const uuid = formatUuid(machine.uuid);
  let last: string | undefined;
  for (;;) {
    try {
      const end = await serveOnce(context, machine, hooking);
      if (end === undefined || signal.aborted) return end;
      log.info(`${uuid} unhooked: ${ENDS[end]}`);
      if (reconnect === undefined || !MAY_COME_BACK.has(end)) return end;
      last = undefined;
    } catch (error) {
      if (reconnect === undefined || signal.aborted || !isPeerError(error)) throw error;
      const message = `${messageOf(error)}; trying again every ${reconnect / 1000} s`;
      if (message !== last) log.warn(message);
      last = message;
    }
    await pause(reconnect, signal);
    if (signal.aborted) return undefined;
  }
}

/** There are no rows: the log tells what happens. */
// biome-ignore lint/correctness/useYield: see above
async function* served(context: Context, machine: Machine, hooking: Hooking): AsyncGenerator<Row> {
  const end = await serveOn(context, machine, hooking);
  if (end === 'stalled') context.exitWith(EXIT.timeout.code);
}

/** The tool is not there, or not the right one: that may change. That the VM cannot be hooked does not. */
function isPeerError(error: unknown): boolean {
  if (!(error instanceof KvmiError) || error.code === 'E_HOOK') return false;
  return error.code === 'E_TIMEOUT' || exitOf(error) === 'peer';
}

export const hook = command({
  name: 'hook',
  summary: 'hook a VM to an introspection tool, as a device manager does',
  description: [
    'Connects to the socket where the tool listens, exchanges the handshake, hooks the VM and serves the tool until it ' +
      'unhooks or hangs up, the VM ends, or Ctrl-C. On every way out the VM is unhooked.',
    'The tool may read and change the whole guest. --allow-commands and --allow-events limit it; --cookie-file makes sure ' +
      'that it is the right one.',
  ],
  arguments: [OPTIONAL_VM],
  options: {
    tool: valueOption('--tool <ADDRESS>', 'required: where it listens, unix:PATH or tcp:HOST:PORT', text),
    dialect: defaultOption(
      '--dialect <NAME>',
      'the numbering of messages that the tool speaks: v7 (libkvmi), v9 or v12',
      oneOf('--dialect', DIALECT_NAMES),
      'v12',
      DIALECT_NAMES,
    ),
    cookieFile: valueOption(
      '--cookie-file <FILE>',
      'the shared secret; a tool that has not the same is refused',
      text,
    ),
    allowCommands: defaultOption(
      '--allow-commands <LIST>',
      'names or ids between commas, all or none',
      text,
      'all',
    ),
    allowEvents: defaultOption(
      '--allow-events <LIST>',
      'names or ids between commas, all or none',
      text,
      'all',
    ),
    eventTimeout: valueOption(
      '--event-timeout <SECONDS>',
      'unhook a tool that owes the answer to an event for so long (default: wait for ever)',
      seconds('--event-timeout'),
    ),
    reconnect: valueOption(
      '--reconnect <SECONDS>',
      'when the tool is not there or hangs up, try again after so long',
      seconds('--reconnect'),
    ),
    sendMemoryMap: flag('--send-memory-map', 'send the memory map with the handshake (its second variant)'),
  },
  examples: [
    { command: 'kvmi hook VM --tool unix:/run/tool.sock', does: 'hook the VM to a tool that listens there' },
    {
      command: 'kvmi hook VM --tool unix:/run/tool.sock --dialect v7 --reconnect 1',
      does: 'serve a tool that is made with libkvmi, whenever it runs',
    },
    {
      command: 'kvmi hook VM --tool tcp:10.0.0.2:4321 --cookie-file secret --allow-events BREAKPOINT,PAUSE',
      does: 'a tool on another host that has to know the secret, with few rights',
    },
  ],
  columns: [],
  verbose: true,
  run(context, [vm], { tool, dialect, cookieFile, allowCommands, allowEvents, ...options }) {
    if (tool === undefined) {
      throw new UsageError('--tool is required', 'Say where the tool listens: --tool unix:/run/tool.sock');
    }
    if (parseAddress(tool).kind === 'tcp' && cookieFile === undefined) {
      throw new KvmiError('E_COOKIE', `${tool} without a cookie: anybody could answer there`, {
        hint: 'Give both ends the same secret: --cookie-file FILE.',
      });
    }
    const commands = commandNames(allowCommands, dialect);
    const events = eventNames(allowEvents, dialect);
    const hooking: Hooking = {
      tool,
      reconnect: options.reconnect,
      options: {
        dialect,
        sendMemoryMap: options.sendMemoryMap,
        ...(cookieFile !== undefined && { cookie: readCookieFile(cookieFile) }),
        ...(commands && { allowCommands: commands }),
        ...(events && { allowEvents: events }),
        ...(options.eventTimeout !== undefined && { eventTimeout: options.eventTimeout }),
      },
    };
    return withMachine(context, vm, (machine) => served(context, machine, hooking));
  },
});
