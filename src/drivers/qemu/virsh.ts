import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { KvmiError } from '../../error.ts';
import type { ErrorCode } from '../../error-codes.ts';

/** Ends virsh when its standard input does, and nothing else has: when this process was killed. */
const LEASHED =
  'exec 3<&0; (cat <&3 >/dev/null 2>&1; kill $$) >/dev/null 2>&1 & exec virsh "$@" </dev/null 3<&-';

const running = new Set<ChildProcessWithoutNullStreams>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/**
 * Starts virsh in a session of its own: what a terminal or a supervisor sends to the group of this process must not end
 * it before the VM is let go. It ends with this process, however that ends. `listens`: it does not read commands.
 */
export function spawnVirsh(args: readonly string[], listens: boolean): ChildProcessWithoutNullStreams {
  const [program, words] = listens ? ['sh', ['-c', LEASHED, 'virsh', ...args]] : ['virsh', args];
  const child = spawn(program, words, { stdio: 'pipe', detached: true });
  running.add(child);
  const ended = () => {
    running.delete(child);
    child.stdin.destroy();
  };
  child.once('error', ended);
  child.once('exit', ended);
  child.stdin.on('error', () => {});
  return child;
}

/** What virsh says when libvirt's daemon has gone, is not there yet, or has just come back. */
const DISCONNECTED =
  /disconnected from|reconnected to|no valid connection|connection reset|broken pipe|client socket is closed|failed to connect|cannot (?:recv|read|write) data|end of file|keepalive|virsh has ended/i;

/** What virsh says, by what it means; the first one that fits. */
const MEANINGS: readonly { readonly text: RegExp; readonly code: ErrorCode; readonly hint: string }[] = [
  {
    text: /polkit|authentication|access denied|permission denied|operation not permitted/i,
    code: 'E_PERMISSION',
    hint: 'Run kvmi as root, or as a member of the group that libvirt lets in (often `libvirt`).',
  },
  {
    text: /failed to get domain|domain not found|no domain with matching|domain is not running/i,
    code: 'E_NO_MACHINE',
    hint: "`virsh list --all` shows the domains; libvirt's connection is chosen by LIBVIRT_DEFAULT_URI.",
  },
  {
    text: /virsh does not start/,
    code: 'E_LIBVIRT',
    hint: 'Install virsh: apt-get install libvirt-clients.',
  },
];

/** What virsh said about a domain, as an error: E_PERMISSION, E_NO_MACHINE, or E_LIBVIRT. */
export function virshError(domain: string, text: string): KvmiError {
  const meaning = MEANINGS.find((candidate) => candidate.text.test(text));
  return new KvmiError(meaning?.code ?? 'E_LIBVIRT', `libvirt domain ${domain}: ${text}`, {
    hint: meaning?.hint ?? "See `virsh list`; libvirt's connection is chosen by LIBVIRT_DEFAULT_URI.",
    data: { domain },
  });
}

/** Whether an error of virsh tells that libvirt's daemon was gone: time may heal it. */
export function isDisconnection(error: unknown): boolean {
  return error instanceof KvmiError && error.code !== 'E_PERMISSION' && DISCONNECTED.test(error.message);
}

/** What libvirt says about a domain that is shut off, by its reason. */
const FATES: Readonly<Record<string, string>> = {
  saved: 'was saved',
  destroyed: 'was destroyed',
  shutdown: 'was shut down',
  migrated: 'was migrated',
  crashed: 'crashed',
  failed: 'failed: libvirt has given it up',
};

/** What became of a domain whose state is what `virsh domstate --reason` printed; undefined while it is not shut off. */
export function fateOf(state: string): string | undefined {
  const reason = /^shut off \((.+)\)$/.exec(state)?.[1];
  return reason === undefined ? undefined : (FATES[reason] ?? 'has ended');
}
