/** Commands by which nothing of a VM changes; what reads guest memory and describes a machine needs no others. */
const COMMANDS = [/^query-[a-z0-9-]+$/, /^qom-(get|list)$/, /^pmemsave$/];

/** Lines of the human monitor of that kind. */
const LINES = [/^info [a-z0-9-]+( -[a-z])*$/, /^gpa2hva 0x[0-9a-f]+$/];

/** Whether a process that shares a connection may have `command` carried out. */
export function isAllowed(command: string, args: Readonly<Record<string, unknown>>): boolean {
  if (command !== 'human-monitor-command') return COMMANDS.some((pattern) => pattern.test(command));
  const line = args['command-line'];
  return typeof line === 'string' && LINES.some((pattern) => pattern.test(line));
}
