import type { Command, Option, OptionTable } from './command.ts';
import { COMMON_OPTIONS } from './settings.ts';
import { TARGET_PREFIXES } from './targets.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** Flags of an option: `['-o', '--output']`. */
function flagsOf(option: Option<unknown>): string[] {
  return option.flags
    .replace(/\s*<.*>$/, '')
    .split(',')
    .map((flag) => flag.trim());
}

function allFlags(options: OptionTable): string[] {
  return Object.values(options).flatMap(flagsOf);
}

function takesVm(command: Command): boolean {
  return command.arguments[0]?.name === 'VM';
}

const PREFIXES = TARGET_PREFIXES.join(' ');
/** Names and pids of the VMs that run, one a line. */
const LIST_VMS = 'kvmi list -o csv -c name,pid 2>/dev/null | tail -n +2 | tr , "\\n"';

const SCRIPTS: Readonly<Record<Shell, (commands: readonly Command[]) => string>> = { bash, zsh, fish };

/** What to give to a shell, so that it completes these commands. */
export function completionScript(shell: Shell, commands: readonly Command[]): string {
  return SCRIPTS[shell](commands);
}

/** Options with words to choose from, of all commands. */
function choices(commands: readonly Command[]): { flags: string[]; words: readonly string[] }[] {
  const options = [
    ...Object.values(COMMON_OPTIONS),
    ...commands.flatMap((each) => Object.values(each.options)),
  ];
  return options.flatMap((option: Option<unknown>) =>
    option.choices ? [{ flags: flagsOf(option), words: option.choices }] : [],
  );
}

/** Whether the value of an option is a file. */
function isFile(option: Option<unknown>): boolean {
  return /<FILE>$/.test(option.flags);
}

/** Flags of the options with a value that `which` says, of all commands. */
function valueFlags(commands: readonly Command[], which: (option: Option<unknown>) => boolean): string[] {
  const options = [COMMON_OPTIONS, ...commands.map((each) => each.options)].flatMap((table) =>
    Object.values(table),
  );
  const flags = options.filter((option) => option.parse && which(option)).flatMap(flagsOf);
  return [...new Set(flags)];
}

function bash(commands: readonly Command[]): string {
  const common = [...allFlags(COMMON_OPTIONS), '--help'].join(' ');
  const cases = commands.map(
    (each) => `    ${each.name}) words="${[...allFlags(each.options), common].join(' ')}" ;;`,
  );
  const values = choices(commands).map(
    ({ flags, words }) =>
      `    ${flags.join('|')}) COMPREPLY=($(compgen -W "${words.join(' ')}" -- "$current")); return ;;`,
  );
  const files = valueFlags(commands, (option) => isFile(option));
  const free = valueFlags(commands, (option) => !isFile(option) && option.choices === undefined);
  const withVm = commands.filter(takesVm).map(({ name }) => name);
  return `# bash completion of kvmi
_kvmi() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" command="" vms="" word words
  COMPREPLY=()
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in ${commands.map(({ name }) => name).join('|')}) command="$word"; break ;; esac
  done
  case "$previous" in
${values.join('\n')}
${files.length > 0 ? `    ${files.join('|')}) COMPREPLY=($(compgen -f -- "$current")); return ;;\n` : ''}    ${free.join('|')}) return ;;
  esac
  case "$command" in
    '') words="${commands.map(({ name }) => name).join(' ')} ${common} --version" ;;
${cases.join('\n')}
  esac
  case "$current" in
    -*) ;;
    *) case "$command" in
         ${withVm.join('|')}) words="${PREFIXES}"; vms=yes ;;
         completion) words="${SHELLS.join(' ')}" ;;
       esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ -n "$vms" ] || return
  # compgen would expand names that look like shell code
  while IFS= read -r word; do
    [[ -n "$word" && "$word" == "$current"* ]] && COMPREPLY+=("$(printf %q "$word")")
  done < <(${LIST_VMS})
}
complete -o default -F _kvmi kvmi
`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function zsh(commands: readonly Command[]): string {
  const names = commands.map(({ name, summary }) => `    ${quoted(`${name}:${summary}`)}`);
  const spec = (option: Option<unknown>): string[] => {
    const about = option.about.replace(/[[\]:]/g, ' ');
    const value = option.choices
      ? `:value:(${option.choices.join(' ')})`
      : option.parse
        ? `:value:${isFile(option) ? '_files' : ' '}`
        : '';
    return flagsOf(option).map((flag) => quoted(`*${flag}[${about}]${value}`));
  };
  const common = Object.values(COMMON_OPTIONS).flatMap((option: Option<unknown>) => spec(option));
  const cases = commands.map((each) => {
    const own = Object.values(each.options).flatMap(spec);
    const operands = takesVm(each)
      ? ['1:VM:_kvmi_vms']
      : each.name === 'completion'
        ? [`1:shell:(${SHELLS.join(' ')})`]
        : [];
    return `    ${each.name}) _arguments -s ${[...own, ...operands.map(quoted)].join(' ')} $common ;;`;
  });
  return `#compdef kvmi
# zsh completion of kvmi
_kvmi_vms() {
  local -a vms
  vms=(\${(f)"$(${LIST_VMS})"} ${PREFIXES})
  compadd -a vms
}
_kvmi() {
  local -a commands common
  commands=(
${names.join('\n')}
  )
  common=(${common.join(' ')})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  shift words
  (( CURRENT-- ))
  case "$words[1]" in
${cases.join('\n')}
  esac
}
# Autoloaded as _kvmi it is the function itself; sourced it registers it.
if [[ "$funcstack[1]" == _kvmi ]]; then
  _kvmi "$@"
else
  (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
  compdef _kvmi kvmi
fi
`;
}

function fish(commands: readonly Command[]): string {
  const option = (condition: string, each: Option<unknown>): string => {
    const flags = flagsOf(each).map((flag) =>
      flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag[1]}`,
    );
    const value = each.choices
      ? ` -x -a ${quoted(each.choices.join(' '))}`
      : each.parse
        ? isFile(each)
          ? ' -r -F'
          : ' -x'
        : '';
    return `complete -c kvmi ${condition}${flags.join(' ')}${value} -d ${quoted(each.about)}`;
  };
  const lines = ['# fish completion of kvmi', 'complete -c kvmi -f'];
  for (const { name, summary } of commands) {
    lines.push(`complete -c kvmi -n '__fish_use_subcommand' -a ${name} -d ${quoted(summary)}`);
  }
  for (const each of Object.values(COMMON_OPTIONS)) lines.push(option('', each));
  for (const each of commands) {
    const condition = `-n '__fish_seen_subcommand_from ${each.name}' `;
    for (const own of Object.values(each.options)) lines.push(option(condition, own));
    if (takesVm(each)) lines.push(`complete -c kvmi ${condition}-a '(${LIST_VMS}) ${PREFIXES}'`);
  }
  lines.push(`complete -c kvmi -n '__fish_seen_subcommand_from completion' -a ${quoted(SHELLS.join(' '))}`);
  return `${lines.join('\n')}\n`;
}
