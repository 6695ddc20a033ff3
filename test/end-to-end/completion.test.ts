import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { loadCommands } from '../../src/cli/commands/index.ts';
import { completionScript, SHELLS, type Shell } from '../../src/cli/completion.ts';

/* Completion in the shells themselves. `kvmi` is a script that prints a list of one VM there. */

const directory = mkdtempSync(join(tmpdir(), 'kvmi-completion-'));
after(() => rmSync(directory, { recursive: true, force: true }));

before(async () => {
  const commands = await loadCommands();
  for (const shell of SHELLS) writeFileSync(join(directory, shell), completionScript(shell, commands));
  const kvmi = join(directory, 'kvmi');
  writeFileSync(
    kvmi,
    `#!/bin/sh\ncase "$1" in list) printf 'name,pid\\nweb-1,17\\n' ;; completion) cat ${directory}/"$2" ;; esac\n`,
  );
  chmodSync(kvmi, 0o755);
});

function whyNo(shell: Shell): string | false {
  return spawnSync(shell, ['-c', ':']).status === 0 ? false : `${shell} is not installed`;
}

function lines(shell: Shell, args: readonly string[], script: string): string[] {
  const env = {
    ...process.env,
    PATH: `${directory}:${process.env.PATH}`,
    HOME: directory,
    ZDOTDIR: directory,
  };
  return execFileSync(shell, [...args, '-c', script], { encoding: 'utf8', env, cwd: directory })
    .split('\n')
    .map((line) => line.split('\t')[0]!.trim())
    .filter((line) => line !== '');
}

/** What a shell offers for the last of `words`. */
const OFFERS: Readonly<Partial<Record<Shell, (words: readonly string[]) => string[]>>> = {
  bash: (words) =>
    lines(
      'bash',
      ['--norc'],
      `source <(kvmi completion bash); COMP_WORDS=(kvmi ${words.map((word) => `'${word}'`).join(' ')}); ` +
        `COMP_CWORD=${words.length}; _kvmi; printf '%s\\n' "\${COMPREPLY[@]}"`,
    ),
  fish: (words) =>
    lines('fish', ['--no-config'], `kvmi completion fish | source; complete -C 'kvmi ${words.join(' ')}'`),
};

for (const [shell, offers] of Object.entries(OFFERS) as [Shell, (words: readonly string[]) => string[]][]) {
  describe(`completion in ${shell}`, { skip: whyNo(shell) }, () => {
    test('commands, VMs and the values of options', () => {
      assert.ok(offers(['re']).includes('read'));
      assert.ok(offers(['regs', '']).includes('web-1'));
      assert.deepEqual(offers(['regs', '-o', 'js']).sort(), ['json', 'jsonl']);
    });

    test('where a value is expected that is no VM, no VM is offered', () => {
      for (const option of ['-c', '--filter', '--timeout'])
        assert.ok(!offers(['regs', option, '']).includes('web-1'), option);
      for (const option of ['--types', '--vmlinux'])
        assert.ok(offers(['check', option, '']).includes('kvmi'), `${option} takes a file`);
    });
  });
}

describe('completion in zsh', { skip: whyNo('zsh') }, () => {
  test('source <(kvmi completion zsh) registers, with and without compinit before', () => {
    const shown = 'print -- "${_comps[kvmi]}"';
    const load = 'autoload -Uz compinit && compinit -u';
    assert.deepEqual(lines('zsh', ['-f'], `${load}; source <(kvmi completion zsh); ${shown}`), ['_kvmi']);
    assert.deepEqual(lines('zsh', ['-f'], `source <(kvmi completion zsh) </dev/null; ${shown}`), ['_kvmi']);
  });

  test('so does the file in $fpath, which completes when it is loaded', () => {
    const load = `cp zsh _kvmi; fpath=("$PWD" $fpath); autoload -Uz compinit && compinit -u`;
    assert.deepEqual(lines('zsh', ['-f'], `${load}; print -- "\${_comps[kvmi]}"`), ['_kvmi']);
    const called = lines(
      'zsh',
      ['-f'],
      `${load}; _describe() { print -- "described $1" }; words=(kvmi r); CURRENT=2; _kvmi`,
    );
    assert.deepEqual(called, ['described command']);
  });
});
