import type { Command, Option, OptionTable } from '../src/cli/command.ts';
import { loadCommands } from '../src/cli/commands/index.ts';
import { ERROR_EXITS } from '../src/cli/error-exits.ts';
import { EXIT } from '../src/cli/exit-codes.ts';
import { defaultText, usage } from '../src/cli/help.ts';
import { COMMON_OPTIONS } from '../src/cli/settings.ts';
import { targetTerms } from '../src/cli/targets.ts';
import { ERROR_CODES, type ErrorCode } from '../src/error-codes.ts';

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}

function code(text: string): string {
  return `\`${cell(text)}\``;
}

function table(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [line(headings), line(headings.map(() => '---')), ...rows.map(line)].join('\n');
}

function optionTable(options: OptionTable): string {
  const rows = Object.values(options).map((option: Option<unknown>) => [
    code(option.flags),
    cell(option.about + defaultText(option)),
  ]);
  return table(['option', 'meaning'], rows);
}

function examples(command: Command): string {
  const lines = command.examples.map((example) => `# ${example.does}\n${example.command}`);
  return `\`\`\`sh\n${lines.join('\n')}\n\`\`\``;
}

function commandSection(command: Command): string {
  const parts = [
    `## kvmi ${command.name}`,
    `${command.summary[0]!.toUpperCase()}${command.summary.slice(1)}.`,
    examples(command),
    ...(command.description ?? []),
    code(usage(command)),
  ];
  if (command.arguments.length > 0) {
    parts.push(
      table(
        ['argument', 'meaning'],
        command.arguments.map(({ name, about }) => [name, cell(about)]),
      ),
    );
  }
  if (Object.keys(command.options).length > 0) parts.push(optionTable(command.options));
  if (command.columns.length > 0) {
    const rows = command.columns.map(({ name, kind, about, wide, key }) => [
      name,
      kind,
      cell(about + (key ? ' (key)' : '') + (wide ? ' (only in wide)' : '')),
    ]);
    parts.push(table(['column', 'kind', 'meaning'], rows));
  }
  return parts.join('\n\n');
}

/** docs/reference/cli.md, from the descriptions of the commands. */
export async function cliPage(): Promise<string> {
  const commands = await loadCommands();
  return `# The command kvmi

\`kvmi COMMAND --help\` shows the same. Data goes to standard output and nothing else does; messages, progress and
hints go to standard error. [Output formats](output.md), [errors](errors.md).

${table(
  ['command', 'does'],
  commands.map(({ name, summary }) => [`[${name}](#kvmi-${name})`, cell(summary)]),
)}

## Which VM

${table(
  ['VM', 'is'],
  targetTerms().map(([term, about]) => [code(term), cell(about)]),
)}

## Common options

Before or after the name of the command.

${optionTable(COMMON_OPTIONS)}

Colours are used on a terminal only; \`NO_COLOR\` turns them off. Ctrl-C, SIGTERM and SIGHUP unhook the VM before the
command ends. A second one says what is still being undone, or ends the command when nothing is; a third one ends it in
any case, and leaves the rest to the guard.

## Exit codes

${table(
  ['code', 'meaning'],
  Object.values(EXIT).map((exit) => [String(exit.code), exit.meaning]),
)}

${commands.map(commandSection).join('\n\n')}
`;
}

/** docs/reference/errors.md, from the table of error codes. */
export function errorsPage(): string {
  const sections = Object.entries(ERROR_CODES).map(
    ([name, { meaning, next }]) =>
      `## ${name}\n\n${meaning}\n\nWhat to do: ${next}\n\nExit code of \`kvmi\`: ${EXIT[ERROR_EXITS[name as ErrorCode]].code}.`,
  );
  return `# Errors

Every error has a stable code, says what failed, where and why, and, where there is one, the next step:

\`\`\`
$ kvmi regs wbe
kvmi: error: no VM is called wbe, nor has it as pid or UUID [E_NO_VM]
hint: Did you mean web?
\`\`\`

In programs it is \`error.code\` of a \`KvmiError\`, with \`error.hint\` and \`error.data\`. With \`--log-format json\` it
is one line of JSON on standard error: \`{"v":1,"level":"error","code":…,"message":…,"hint":…,"data":…,"exit":…}\`.

The exit code of \`kvmi\` says whose turn it is:

- ${EXIT.usage.code}: the command line cannot be carried out as it is. An argument is wrong, a file to write exists, a file to compare with or
  to take types from is missing or does not fit, \`tcp:\` stands without a cookie.
- ${EXIT.noSuchVm.code}: what stands for VM is not there: no such name, or no dump at the path of \`file:\`.
- ${EXIT.permission.code}: the system, a file's rights or \`--allow-…\` say no, whatever it is for.
- ${EXIT.peer.code}: the other end of a connection.

${sections.join('\n\n')}
`;
}
