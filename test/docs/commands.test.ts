import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadCommands } from '../../src/cli/commands/index.ts';
import { parseCommandLine } from '../../src/cli/program.ts';
import { KvmiProcess } from '../kit/kvmi-process.ts';

/* What documentation and help tell people to type works. */

const root = join(import.meta.dirname, '..', '..', '..');
const TIMEOUT_MS = 60_000;

function pages(): string[] {
  const all = readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' });
  return ['README.md', ...all.filter((name) => name.endsWith('.md')).map((name) => join('docs', name))];
}

/** The code blocks of a page in a language. */
function blocks(page: string, language: string): string[] {
  const text = readFileSync(join(root, page), 'utf8');
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, 'gms'))].map((match) => match[1]!);
}

/** The words of the first simple command of a line that runs kvmi, as a shell takes them; undefined: it runs none. */
function kvmiWords(line: string): string[] | undefined {
  const words: string[] = [];
  for (const [word] of line.matchAll(/(?:'[^']*'|"[^"]*"|[^\s'"])+/g)) {
    if (/^[|&;<>#]/.test(word)) break;
    words.push(
      word.replace(/'([^']*)'|"([^"]*)"/g, (_, single?: string, double?: string) => single ?? double ?? ''),
    );
  }
  return words[0] === 'kvmi' ? words.slice(1) : undefined;
}

async function parses(line: string, where: string): Promise<void> {
  const words = kvmiWords(line);
  if (!words) return;
  await assert.doesNotReject(parseCommandLine(words), `${where}: ${line}`);
}

test('examples of help are understood', async () => {
  for (const { name, examples } of await loadCommands()) {
    for (const { command } of examples) await parses(command, name);
  }
});

test('commands in the documentation are understood', async () => {
  for (const page of pages()) {
    const lines = [...blocks(page, 'sh'), ...blocks(page, 'console')].flatMap((block) =>
      block.replaceAll('\\\n', ' ').split('\n'),
    );
    for (const line of lines) await parses(line.replace(/^\$ /, ''), page);
  }
});

function shell(script: string): Promise<string> {
  const env = { ...process.env, PATH: `${join(root, 'bin')}:${process.env.PATH}` };
  return new Promise((resolve, reject) => {
    execFile('sh', ['-ec', script], { cwd: root, env, timeout: TIMEOUT_MS }, (error, stdout, stderr) => {
      if (error) reject(new Error(`${script}\n${stderr}`));
      else resolve(stdout);
    });
  });
}

for (const script of blocks('docs/tutorial/quick-start.md', 'sh').filter((block) =>
  block.startsWith('kvmi'),
)) {
  test(`the quick start works: ${script.split('\n')[0]}`, async () => {
    assert.notEqual(await shell(script), '');
  });
}

test('the tool of the quick start works', async () => {
  const [source] = blocks('docs/tutorial/quick-start.md', 'js');
  const directory = join(root, 'dist', 'quick-start');
  mkdirSync(directory, { recursive: true });
  const socket = join(directory, 'tool.sock');
  writeFileSync(join(directory, 'tool.mjs'), source!.replace('/tmp/kvmi-tool.sock', socket));
  const tool = spawn(process.execPath, [join(directory, 'tool.mjs')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    let said = '';
    tool.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    const ended = once(tool, 'exit');
    const hook = new KvmiProcess(['hook', 'embedded:', '--tool', `unix:${socket}`, '--reconnect', '0.1']);
    await hook.seen('stderr', /unhooked: the tool hung up/);
    hook.kill('SIGINT');
    const [code] = await ended;
    assert.equal(code, 0);
    assert.match(said, /^embedded: rip 0x[0-9a-f]+, page tables at 0x[0-9a-f]+\n$/);
    await hook.ended;
  } finally {
    tool.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  }
});
