import {
  chmodSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseMappings } from '../../src/system/proc.ts';
import { SharedMapping } from '../../src/system/shared-mapping.ts';

/*
 * A VMM that was taken over: it runs under the name of QEMU, listens at argv[2], and answers what argv[3] (JSON) tells.
 * Prints "ready" and, for each word of a line on standard input, "done".
 */

interface Plan {
  /** What it maps as the guest's memory; without it, it does not say where that is. */
  readonly ram?: string;
  /** It has only read access to that. */
  readonly readOnly?: boolean;
  /** The thread that it says is its vCPU. */
  readonly thread?: number;
  /** Where it says guest memory is. */
  readonly address?: number;
  /** What it does to the file that it is told to write. */
  readonly save?: 'honest' | 'huge' | 'link' | 'litter';
  readonly victim?: string;
  /** The socket that it puts in place of its gdbstub's. */
  readonly stub?: string;
}

const SIZE = 1 << 20;
const [, , socketPath, planText] = process.argv;
const plan = JSON.parse(planText!) as Plan;
const address = plan.address ?? (plan.ram === undefined ? undefined : map(plan.ram));

function map(path: string): number {
  const fd = openSync(path, plan.readOnly ? 'r' : 'r+');
  const mapping = new SharedMapping('RAM', fd, SIZE, plan.readOnly ? 'read' : 'write');
  // Mapped for as long as this process lives.
  process.on('exit', () => mapping.bytes.length);
  return parseMappings(readFileSync('/proc/self/maps', 'latin1')).find(({ name }) => name === path)!.start;
}

function save(file: string, size: number): void {
  const sockets = join(dirname(file), 'sockets');
  switch (plan.save) {
    case 'huge':
      writeFileSync(file, Buffer.alloc(16 << 20));
      return;
    case 'link':
      try {
        rmSync(file);
        symlinkSync(plan.victim!, file);
      } catch {
        // The directory is not ours: all that is left is the file.
      }
      return;
    case 'litter':
      mkdirSync(join(sockets, 'deep'));
      writeFileSync(join(sockets, 'deep', 'file'), '');
      symlinkSync(dirname(plan.victim!), join(sockets, 'linked'));
      symlinkSync(plan.victim!, join(sockets, 'gdb'));
  }
  const bytes = Buffer.alloc(size, 0x5a);
  writeFileSync(file, bytes);
}

const TREE = `FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000fffff (prio 0, ram): pc.ram

`;

function monitor(line: string): string {
  if (line.startsWith('info mtree')) return TREE;
  if (line.startsWith('gpa2hva') && address !== undefined)
    return `Host virtual address for 0x0 (pc.ram) is 0x${address.toString(16)}\r\n`;
  const stub = /^gdbserver unix:([^,]+)/.exec(line)?.[1];
  if (stub === undefined || plan.stub === undefined) return '';
  symlinkSync(plan.stub, stub);
  return 'Waiting for gdb connection on device';
}

function answer(command: string, args: Readonly<Record<string, unknown>>): unknown {
  switch (command) {
    case 'query-name':
      return { name: 'fake' };
    case 'query-uuid':
      return { UUID: '00000000-0000-0000-0000-000000000001' };
    case 'query-kvm':
      return { enabled: true, present: true };
    case 'query-cpus-fast':
      return [
        { 'thread-id': plan.thread ?? process.pid, 'cpu-index': 0, 'qom-path': '/m', target: 'x86_64' },
      ];
    case 'query-chardev':
    case 'query-migrate-capabilities':
      return [];
    case 'qom-get':
      return 1e9;
    case 'human-monitor-command':
      return monitor(String(args['command-line']));
    case 'pmemsave':
      save(String(args.filename), Number(args.size));
      return {};
    default:
      return {};
  }
}

const server = createServer((socket) => {
  socket.on('error', () => {});
  socket.write('{"QMP": {"version": {}, "capabilities": []}}\n');
  createInterface(socket).on('line', (line) => {
    const { execute, arguments: args = {}, id } = JSON.parse(line);
    socket.write(`${JSON.stringify({ id, return: answer(execute, args) })}\n`);
  });
});
server.listen(socketPath, () => {
  chmodSync(socketPath!, 0o777);
  console.log('ready');
});

createInterface(process.stdin).on('line', (word) => {
  if (word === 'shrink') truncateSync(plan.ram!, 0);
  console.log('done');
});
