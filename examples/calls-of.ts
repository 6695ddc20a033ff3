import { introspect } from '../src/index.ts';
import { type Column, json, type Row, renderTable } from '../src/rows/index.ts';
import { openMachine, symbolsOf } from '../src/targets/index.ts';

/* node calls-of.js VM SYMBOL: the next calls of a function of the guest's kernel, as a table and as JSON. */

const [name = 'embedded:', symbol = 'syscall_entry'] = process.argv.slice(2);
const machine = await openMachine(name);
const guest = await introspect(machine, { symbols: symbolsOf(machine) });
const rows: Row[] = [];
await new Promise<void>((enough, fail) => {
  const probe = guest.probes.at(symbol, ({ vcpu, registers: { rdi } }) => {
    if (rows.length < 5 && rows.push({ vcpu: vcpu.index, rdi }) === 5) enough();
  });
  probe.catch(fail);
});
await guest.detach();
await machine.close();
const columns: Column[] = [
  { name: 'vcpu', kind: 'decimal', about: 'index of the vCPU' },
  { name: 'rdi', kind: 'hex', about: 'the first argument' },
];
console.log(renderTable(columns, rows));
for await (const line of json(columns, rows)) console.log(line);
