import { KvmiError, messageOf, UsageError } from '../error.ts';
import { type ServeEnd, type ServeOptions, serve, vmLabel } from '../host/index.ts';
import { oneOf, seconds, text } from '../input/values.ts';
import type { Machine } from '../machine/index.ts';
import type { Row } from '../rows/columns.ts';
import { connect, isPrivateSocket, parseAddress } from '../transport/index.ts';
import { DIALECTS, type DialectName } from '../wire/index.ts';
import { defaultOption, flag, type OptionValues, valueOption } from './command.ts';
import type { Context } from './context.ts';
import { readCookieFile } from './cookie-file.ts';
import { exitOf } from './errors.ts';
import { EXIT } from './exit-codes.ts';
import { pause, unlessAborted } from './interruption.ts';
import { commandNames, eventNames } from './names.ts';
import { withMachine } from './session.ts';

const DIALECT_NAMES = Object.keys(DIALECTS) as DialectName[];

const ENDS: Readonly<Record<ServeEnd, string>> = {
  tool: 'the tool hung up',
  machine: 'the VM is gone',
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
  const channel = await unlessAborted(connecting, signal);
  if (!channel) {
    connecting.then(
      (late) => late.shutdown(),
      () => {},
    );
    return undefined;
  }
  log.info(`${vmLabel(machine.name, machine.uuid)}: connected to ${tool}`);
  const address = parseAddress(tool);
  const privateChannel = address.kind === 'unix' && isPrivateSocket(address.path);
  return serve(machine, channel, { ...options, privateChannel, log, signal });
}

/** The same again and again, as long as there is a point in it. */
async function serveOn(context: Context, machine: Machine, hooking: Hooking): Promise<ServeEnd | undefined> {
  const { signal, log } = context;
  const { reconnect } = hooking;
  const vm = vmLabel(machine.name, machine.uuid);
  let last: string | undefined;
  for (;;) {
    try {
      const end = await serveOnce(context, machine, hooking);
      if (end === undefined || signal.aborted) return end;
      log.info(`${vm}: unhooked: ${ENDS[end]}`);
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

/** The options of every command that hooks a VM to a tool. */
export const HOOK_OPTIONS = {
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
} as const;

/** What the user asked for. @throws KvmiError with code E_USAGE, E_COOKIE or what reading the cookie throws. */
function hookingOf(asked: OptionValues<typeof HOOK_OPTIONS>): Hooking {
  const { tool, dialect, cookieFile, allowCommands, allowEvents, ...options } = asked;
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
  return {
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
}

/** Opens a VM, hooks it to the tool and serves the tool until there is no point in it any more. */
export function hookToTool(
  context: Context,
  vm: string | undefined,
  options: OptionValues<typeof HOOK_OPTIONS>,
): AsyncGenerator<Row> {
  const hooking = hookingOf(options);
  return withMachine(context, vm, (machine) => served(context, machine, hooking));
}
