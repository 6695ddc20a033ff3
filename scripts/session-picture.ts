import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LinuxGuest } from '../test/kit/linux-guest.ts';

/*
 * Draws docs/session.svg: what a terminal shows of a session with a Debian guest under QEMU. The commands are run, as
 * root.
 */

const ROOT = join(import.meta.dirname, '..', '..');
/** What is typed, and how many lines of the answer are shown. */
const SESSION: readonly (readonly [command: string, lines: number])[] = [
  ['kvmi list --filter name=web', 3],
  ["kvmi ps web --filter 'kernel-thread=no' -c pid,ppid,uid,state,comm,command", 9],
  ['kvmi break web __x64_sys_getuid --count 3 -c time,vcpu,rip,rdi,rsp', 6],
  ['kvmi check web', 6],
];
const COLUMNS = 100;
const CHARACTER = { width: 8.4, height: 19 };
const MARGIN = 18;
const COLORS: Readonly<Record<string, string>> = {
  '31': '#ff7b72',
  '32': '#7ee787',
  '33': '#e3b341',
  '35': '#d2a8ff',
  '36': '#76e3ea',
};

async function run(command: string): Promise<string> {
  const child = spawn('sh', ['-c', `exec ${command} --color always -o table 2>&1`], {
    env: { ...process.env, PATH: `${join(ROOT, 'bin')}:${process.env.PATH}`, COLUMNS: String(COLUMNS) },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let text = '';
  for await (const chunk of child.stdout) text += chunk;
  return text;
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

/** One line with its colours as spans. */
function spans(line: string): string {
  let style = '';
  return line
    .split(/\x1b\[(\d+)m/)
    .map((part, index) => {
      if (index % 2 === 0) return part && `<tspan${style}>${escapeXml(part)}</tspan>`;
      const color = COLORS[part];
      style =
        part === '1'
          ? ' font-weight="bold"'
          : part === '2'
            ? ' opacity="0.6"'
            : color
              ? ` fill="${color}"`
              : '';
      return '';
    })
    .join('');
}

function draw(lines: readonly string[]): string {
  const width = COLUMNS * CHARACTER.width + 2 * MARGIN;
  const height = lines.length * CHARACTER.height + 2 * MARGIN;
  const rows = lines.map(
    (line, index) =>
      `<text x="${MARGIN}" y="${MARGIN + (index + 0.8) * CHARACTER.height}">${spans(line)}</text>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="14" fill="#e6edf3" xml:space="preserve">
<title>A session with kvmi on a terminal</title>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
${rows.join('\n')}
</svg>
`;
}

const vm = await LinuxGuest.boot({ smp: 2, memory: 512, args: ['-name', 'web'], fresh: true });
const shown: string[] = [];
try {
  await vm.run('(while true; do id -u >/dev/null; sleep 0.2; done) &');
  for (const [command, count] of SESSION) {
    const lines = (await run(command)).trimEnd().split('\n');
    shown.push(`\x1b[32m$\x1b[39m \x1b[1m${command}\x1b[22m`, ...lines.slice(0, count), '');
  }
} finally {
  await vm.kill();
}
shown.pop();
writeFileSync(join(ROOT, 'docs', 'session.svg'), draw(shown));
