import { readFileSync } from 'node:fs';
import { command } from '../command.ts';

function packageVersion(): string {
  const file = new URL('../../../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

export const version = command({
  name: 'version',
  summary: 'print the version',
  arguments: [],
  options: {},
  examples: [
    { command: 'kvmi version', does: 'the version, and what it runs on' },
    { command: 'kvmi version -q', does: 'only the version' },
  ],
  columns: [
    { name: 'version', kind: 'text', key: true, about: 'the version of kvmi' },
    { name: 'node', kind: 'text', about: 'the version of Node.js' },
    { name: 'platform', kind: 'text', about: 'operating system and architecture' },
  ],
  async *text(rows) {
    for await (const { version, node, platform } of rows) yield `kvmi ${version} (node ${node}, ${platform})`;
  },
  async *run() {
    const { version: node, platform, arch } = process;
    yield { version: packageVersion(), node: node.slice(1), platform: `${platform} ${arch}` };
  },
});
