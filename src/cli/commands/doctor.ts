import { messageOf } from '../../error.ts';
import type { Row } from '../../rows/columns.ts';
import { printable } from '../../rows/printable.ts';
import { STANDARD_WIDTH, wrapped } from '../../rows/text.ts';
import type { Check, Severity } from '../checks/check.ts';
import { HOST_CHECKS } from '../checks/host.ts';
import { kvmChecks } from '../checks/kvm.ts';
import { QEMU_CHECKS } from '../checks/qemu.ts';
import { command } from '../command.ts';
import { EXIT } from '../exit-codes.ts';

/** Every check; a driver adds its own here. */
async function allChecks(): Promise<readonly Check[]> {
  return [...HOST_CHECKS, ...(await kvmChecks()), ...QEMU_CHECKS];
}

/** The longest name of a check. */
const NAME_WIDTH = 11;
const INDENT = ' '.repeat(NAME_WIDTH + 4);

const SIGNS: Readonly<Record<Severity, string>> = { ok: 'ok', info: '--', warning: '!!', error: 'XX' };

async function* examine({ name, enables, examine }: Check): AsyncGenerator<Row> {
  const failed = (error: unknown) => ({ severity: 'warning', found: messageOf(error) }) as const;
  const result = await Promise.resolve().then(examine).catch(failed);
  for (const { severity, found, remedy, about } of Array.isArray(result) ? result : [result]) {
    yield { check: name, about, severity, found, enables, ...(remedy && { remedy }) };
  }
}

export const doctor = command({
  name: 'doctor',
  summary: 'check what this host allows, and how to get the rest',
  description: ['Changes nothing. Ends with 1 when something is missing that kvmi cannot do without.'],
  arguments: [],
  options: {},
  examples: [
    { command: 'kvmi doctor', does: 'everything' },
    { command: "kvmi doctor --filter 'severity!=ok'", does: 'only what could be better' },
    { command: 'kvmi doctor -o json', does: 'for a program' },
  ],
  columns: [
    { name: 'check', kind: 'text', key: true, about: 'what was looked at' },
    { name: 'about', kind: 'text', wide: true, about: 'which one, when there are several' },
    { name: 'severity', kind: 'text', about: 'ok, info, warning or error' },
    { name: 'found', kind: 'text', cut: true, about: 'what was found' },
    { name: 'enables', kind: 'text', cut: true, about: 'what works because of it' },
    { name: 'remedy', kind: 'text', cut: true, about: 'how to get it' },
  ],
  async *text(rows, theme, width = STANDARD_WIDTH) {
    const room = width - INDENT.length;
    const paint = { ok: theme.green, info: theme.dim, warning: theme.yellow, error: theme.red };
    for await (const row of rows) {
      const severity = row.severity as Severity;
      const about = row.about === undefined ? '' : `${row.about}: `;
      const [first = '', ...more] = wrapped(printable(`${about}${row.found}`), room);
      yield `${paint[severity](SIGNS[severity])} ${String(row.check).padEnd(NAME_WIDTH)} ${first}`;
      for (const line of more) yield INDENT + line;
      if (severity === 'ok') continue;
      for (const line of wrapped(`for ${row.enables}`, room)) yield theme.dim(INDENT + line);
      for (const line of wrapped(printable(String(row.remedy ?? '')), room)) yield INDENT + line;
    }
  },
  async *run(context) {
    for (const check of await allChecks()) {
      for await (const row of examine(check)) {
        if (row.severity === 'error') context.exitWith(EXIT.error.code);
        yield row;
      }
    }
  },
});
