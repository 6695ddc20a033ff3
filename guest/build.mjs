#!/usr/bin/env node
/*
 * Assembles the mini kernel with GNU as and ld and writes kernel.bin and kernel.json.
 * With --check it writes nothing, and fails when the files are not what the source makes.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const KERNEL_BASE = 0xffffffff80000000n;

/** Names with a dot are members of a group: a structure's fields, or numbers that belong together. */
function group(absolute) {
  const groups = {};
  for (const [name, value] of absolute) {
    const [head, member] = name.split('.');
    groups[head] ??= {};
    groups[head][member] = Number(value);
  }
  return groups;
}

function build() {
  const work = mkdtempSync(join(tmpdir(), 'kvmi-guest-'));
  const run = (tool, ...args) => execFileSync(tool, args, { cwd: here, encoding: 'utf8' });
  try {
    const [object, elf, bin] = ['k.o', 'k.elf', 'k.bin'].map((name) => join(work, name));
    run('as', '--64', '--fatal-warnings', '-o', object, 'kernel.S');
    const options = ['-nostdlib', '-static', '--no-warn-rwx-segments', '-z', 'max-page-size=4096'];
    run('ld', ...options, '-T', 'kernel.ld', '-o', elf, object);
    run('objcopy', '-O', 'binary', elf, bin);
    const symbols = run('nm', '--numeric-sort', elf)
      .trim()
      .split('\n')
      .map((line) => line.split(' '))
      .map(([value, type, name]) => ({ value: BigInt(`0x${value}`), type, name }));
    const absolute = symbols.filter(({ type, name }) => type === 'a' && name.includes('.'));
    const addresses = symbols.filter(({ type, name }) => 'tTdDrRbB'.includes(type) && !name.startsWith('.'));
    const start = symbols.find(({ name }) => name === 'start').value;
    const description = {
      load: 0x100000,
      entry: Number(start - KERNEL_BASE),
      base: `0x${KERNEL_BASE.toString(16)}`,
      symbols: Object.fromEntries(addresses.map(({ name, value }) => [name, `0x${value.toString(16)}`])),
      numbers: group(absolute.map(({ name, value }) => [name, value])),
    };
    return { 'kernel.bin': readFileSync(bin), 'kernel.json': `${JSON.stringify(description, null, 2)}\n` };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const check = process.argv.includes('--check');
for (const [name, content] of Object.entries(build())) {
  const path = join(here, name);
  if (!check) writeFileSync(path, content);
  else if (!readFileSync(path).equals(Buffer.from(content))) {
    console.error(`${name} is not what the source makes; run node guest/build.mjs`);
    process.exitCode = 1;
  }
}
