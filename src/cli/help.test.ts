import assert from 'node:assert/strict';
import { test } from 'node:test';
import { displayWidth } from '../rows/printable.ts';
import { PLAIN } from '../rows/theme.ts';
import { loadCommands } from './commands/index.ts';
import { commandHelp, programHelp } from './help.ts';

/** Lines that are copied, and so are never broken. */
const COPIED = /^ {2}(kvmi |source |#)|\|/;

test('help fits the terminal that it is printed on', async () => {
  const commands = await loadCommands();
  for (const width of [60, 80, 132]) {
    const pages = [programHelp(PLAIN, width), ...commands.map((each) => commandHelp(each, PLAIN, width))];
    for (const line of pages.flatMap((page) => page.split('\n'))) {
      assert.ok(COPIED.test(line) || displayWidth(line) <= width, `${width}: ${line}`);
    }
  }
});

test('help uses a wide terminal, and 80 characters where there is none', async () => {
  const widest = (text: string) =>
    Math.max(
      ...text
        .split('\n')
        .filter((line) => !COPIED.test(line))
        .map(displayWidth),
    );
  assert.ok(widest(programHelp(PLAIN, 132)) > 90);
  assert.ok(widest(programHelp(PLAIN)) <= 80);
});
