import { UsageError } from '../error.ts';
import { suggestions } from '../input/suggest.ts';
import { commaList, parseNumber } from '../input/values.ts';
import { type CommandName, DIALECTS, type Dialect, type DialectName, type EventName } from '../wire/index.ts';

interface Named {
  readonly id: number;
  readonly name: string;
}

/** `all`, or what is listed by names and ids; ids are those of the dialect. */
function namesOf<N extends string>(
  option: string,
  kind: string,
  list: string,
  dialect: DialectName,
  table: readonly Named[],
): N[] | undefined {
  if (list === 'all') return undefined;
  if (list === 'none') return [];
  return commaList(list).map((word) => {
    const id = parseNumber(word);
    const wanted = word
      .toUpperCase()
      .replaceAll('-', '_')
      .replace(/^KVMI_/, '');
    const found = table.find((each) => (id === undefined ? each.name === wanted : BigInt(each.id) === id));
    if (found) return found.name as N;
    const close = suggestions(
      wanted,
      table.map(({ name }) => name),
    );
    throw new UsageError(
      `${option}: ${JSON.stringify(word)} is no ${kind} of dialect ${dialect}`,
      close.length > 0
        ? `Did you mean ${close.join(' or ')}?`
        : `They are ${table.map(({ name }) => name).join(', ')}; all and none are taken, too.`,
    );
  });
}

/** What `--allow-commands` lists; undefined: all. */
export function commandNames(list: string, dialect: DialectName): CommandName[] | undefined {
  const { commands }: Dialect = DIALECTS[dialect];
  return namesOf('--allow-commands', 'command', list, dialect, commands);
}

/** What `--allow-events` lists; undefined: all. */
export function eventNames(list: string, dialect: DialectName): EventName[] | undefined {
  const { events }: Dialect = DIALECTS[dialect];
  return namesOf('--allow-events', 'event', list, dialect, events);
}
