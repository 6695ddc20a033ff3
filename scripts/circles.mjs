/*
 * Circles in the imports of src/: the only ones allowed are pairs of files, parent and child, of which one imports
 * nothing but types of the other. dependency-cruiser finds them; its rules cannot say how long one may be.
 */
import { execFileSync } from 'node:child_process';

const output = execFileSync(
  'npx',
  ['--no-install', 'depcruise', '--config', '.dependency-cruiser.cjs', '--output-type', 'json', 'src'],
  { encoding: 'utf8', maxBuffer: 1 << 28 },
);
const circles = new Map();
for (const { source, dependencies } of JSON.parse(output).modules) {
  for (const { circular, cycle = [] } of dependencies) {
    if (!circular) continue;
    const files = [source, ...cycle.map(({ name }) => name).slice(0, -1)];
    const onlyTypes = cycle.some(({ dependencyTypes }) => dependencyTypes.includes('type-only'));
    if (files.length === 2 && onlyTypes) continue;
    circles.set([...files].sort().join(' '), [...files, source].join(' → '));
  }
}
for (const circle of circles.values()) console.error(`circle: ${circle}`);
if (circles.size > 0) process.exitCode = 1;
