import { formatUuid } from '../../host/index.ts';
import { CAPABILITY_NAMES, type Machine } from '../../machine/index.ts';
import { formatSize, type Row } from '../../rows/columns.ts';
import { printable } from '../../rows/printable.ts';
import { STANDARD_WIDTH, wrapped } from '../../rows/text.ts';
import { DIALECTS } from '../../wire/index.ts';
import { command } from '../command.ts';
import { withMachine } from '../session.ts';
import { OPTIONAL_VM } from '../targets.ts';

const SECTIONS: Readonly<Record<string, string>> = {
  machine: 'Machine',
  memory: 'Memory',
  capability: 'What can be done',
  dialect: 'Dialects',
};

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

function* machineRows(machine: Machine): Generator<Row> {
  const { name, uuid, vcpus, memory, startTime } = machine;
  const size = memory.regions.reduce((sum, region) => sum + region.size, 0);
  const row = (item: string, value: string | number, note?: string): Row => ({
    section: 'machine',
    name: item,
    value,
    note,
  });
  yield row('name', name);
  yield row('uuid', formatUuid(uuid));
  yield row('vcpus', vcpus.length);
  yield row('memory', size, formatSize(size));
  if (startTime > 0) yield row('start-time', Math.round(startTime), 'ms of CLOCK_MONOTONIC');
}

function* memoryRows(machine: Machine): Generator<Row> {
  for (const { gpa, size, readonly } of machine.memory.regions) {
    const note = `to ${hex(gpa + size - 1)}, ${formatSize(size)}${readonly ? ', read-only' : ''}`;
    yield { section: 'memory', name: hex(gpa), value: size, note };
  }
}

function* capabilityRows(machine: Machine): Generator<Row> {
  for (const name of CAPABILITY_NAMES) {
    const support = machine.capabilities[name];
    yield {
      section: 'capability',
      name,
      value: support === true,
      ...(support !== true && { note: support }),
    };
  }
}

function* dialectRows(): Generator<Row> {
  for (const { name, commands, events } of Object.values(DIALECTS)) {
    const note = `${commands.length} commands, ${events.length} events`;
    yield { section: 'dialect', name, value: true, note };
  }
}

export const info = command({
  name: 'info',
  summary: 'show a VM: memory map, what can be done with it, and why the rest cannot',
  description: [
    'Nothing is hooked or changed: the VM does not notice. What a kvmi that was killed has left in it is undone first.',
  ],
  arguments: [OPTIONAL_VM],
  options: {},
  examples: [
    { command: 'kvmi info VM', does: 'everything' },
    {
      command: 'kvmi info VM --filter section=capability --filter value=no',
      does: 'what cannot be done, and why',
    },
    {
      command: 'kvmi info VM -o json | jq \'.rows[] | select(.section=="memory")\'',
      does: 'the memory map, for a program',
    },
  ],
  columns: [
    { name: 'section', kind: 'text', key: true, about: 'machine, memory, capability or dialect' },
    {
      name: 'name',
      kind: 'text',
      key: true,
      about: 'what the row is about; of memory, its guest-physical address',
    },
    { name: 'value', kind: 'any', cut: true, about: 'its value; of memory, its size in bytes' },
    { name: 'note', kind: 'text', cut: true, about: 'more for people; of a capability, why it is absent' },
  ],
  async *text(rows, theme, width = STANDARD_WIDTH) {
    let current: unknown;
    for await (const row of rows) {
      if (row.section !== current) {
        yield theme.bold(`${current === undefined ? '' : '\n'}${SECTIONS[String(row.section)]}`);
      }
      current = row.section;
      const name = printable(String(row.name)).padEnd(25);
      const note = printable(String(row.note ?? ''));
      if (typeof row.value === 'boolean') {
        const [first = '', ...more] = wrapped(note, width - 31);
        yield `  ${name}${row.value ? theme.green('yes') : theme.yellow('no ')} ${theme.dim(first)}`.trimEnd();
        for (const line of more) yield `  ${' '.repeat(29)}${theme.dim(line)}`;
      } else if (row.section === 'memory') {
        yield `  ${theme.cyan(name)}${note}`;
      } else {
        yield `  ${name}${printable(String(row.value))}${note === '' ? '' : theme.dim(` (${note})`)}`;
      }
    }
  },
  run(context, [vm]) {
    return withMachine(context, vm, async function* (machine) {
      yield* machineRows(machine);
      yield* memoryRows(machine);
      yield* capabilityRows(machine);
      yield* dialectRows();
    });
  },
});
