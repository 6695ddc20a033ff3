import type { Struct } from '../src/abi/struct.ts';
import { type CommandDefinition, DIALECTS, type Dialect, type EventDefinition } from '../src/wire/index.ts';

/** One layout as `name type` in order, padding as `–`. */
function layout(struct: Struct<unknown>, tail?: string): string {
  const fields = struct.fields.map(({ name, type }) =>
    type.padding ? `– ${type.name}` : `${name} ${type.name}`,
  );
  if (tail) fields.push(tail);
  return fields.length === 0 ? 'nothing' : fields.map((field) => `\`${field}\``).join(', ');
}

function commandRow({ id, name, runsOn, vcpuIn, request, reply }: CommandDefinition): string {
  const header = vcpuIn === 'header' ? 'vCPU header, ' : '';
  return `| ${id} | ${name} | ${runsOn} | ${header}${layout(request.fixed, request.tail)} | ${layout(reply.fixed, reply.tail)} |`;
}

function eventRow({ id, name, controlledBy, data, reply, actions }: EventDefinition): string {
  const enabledBy = controlledBy === 'both' ? 'VM or vCPU' : controlledBy === 'vm' ? 'VM' : 'vCPU';
  const answers = actions.length === 0 ? 'no reply' : actions.join(', ');
  return `| ${id} | ${name} | ${enabledBy} | ${layout(data)} | ${layout(reply)} | ${answers} |`;
}

function dialectSection(dialect: Dialect): string {
  const { vmEvent, event, eventReply } = dialect.messages;
  const commands = [...dialect.commands].sort((a, b) => a.id - b.id);
  const events = [...dialect.events].sort((a, b) => a.id - b.id);
  return `## Dialect ${dialect.name}

Event messages have id ${event}${vmEvent === event ? '' : ` (events about the VM: ${vmEvent})`}, event replies id ${eventReply}.

| id | command | carried out by | request | reply data |
|---|---|---|---|---|
${commands.map(commandRow).join('\n')}

| id | event | enabled for the | data | reply data | actions |
|---|---|---|---|---|---|
${events.map(eventRow).join('\n')}
`;
}

/** docs/reference/protocol.md. */
export function protocolPage(): string {
  return `# Protocol tables

Generated from the tables in \`src/wire\` (\`npm run docs\`); the codecs come from the same tables.

A message is a header – id u16, size u16, seq u32 – and \`size\` bytes, at most 8184. A reply has the id and
seq of its command, an error number s32 (0 or negative), four bytes of padding and, when the number is 0,
the reply data. \`–\` marks padding, which must be 0. A request that is shorter than its layout is
zero-extended. The vCPU header is \`vcpu u16\` and six bytes of padding. A vCPU event starts with a common
block of 544 bytes (size, vCPU, registers), in v12 after an event header of 8 bytes.

${Object.values(DIALECTS).map(dialectSection).join('\n')}`;
}
