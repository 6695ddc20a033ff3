/*
 * What a guest says about itself in /proc, in the form of the rows that are to be compared with it. Each function
 * takes the output of the command that its comment names.
 */

export interface ProcStat {
  readonly pid: number;
  readonly comm: string;
  readonly state: string;
  readonly ppid: number;
  readonly startTicks: number;
}

/** `cat /proc/PID/stat` of all processes */
export function parseStats(text: string): ProcStat[] {
  return lines(text).flatMap((line) => {
    const match = /^(\d+) \((.*)\) (\S) (\d+) (.*)$/.exec(line);
    if (match === null) return [];
    const rest = match[5]!.split(' ');
    return [
      {
        pid: Number(match[1]),
        comm: match[2]!,
        state: match[3]!,
        ppid: Number(match[4]),
        startTicks: Number(rest[17]),
      },
    ];
  });
}

function lines(text: string): string[] {
  return text.split('\n').filter((line) => line !== '');
}

/** `cat /proc/PID/maps`, without the page for old system calls, which is no mapping. */
export function parseMaps(text: string): string[] {
  return lines(text)
    .filter((line) => !line.includes('[vsyscall]'))
    .map((line) => {
      const match = /^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/.exec(line)!;
      const [, start, end, protection, offset, device, inode, path] = match;
      return [start, end, protection, Number.parseInt(offset!, 16), device, inode, path].join(' ');
    });
}

export interface ProcSocket {
  readonly local: string;
  readonly remote: string;
  readonly state: number;
  readonly uid: number;
  readonly inode: number;
}

/** `cat /proc/net/tcp` and the like: addresses stay as they are printed there. */
export function parseInetSockets(text: string): ProcSocket[] {
  return lines(text)
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .map((fields) => ({
      local: fields[1]!,
      remote: fields[2]!,
      state: Number.parseInt(fields[3]!, 16),
      uid: Number(fields[7]),
      inode: Number(fields[9]),
    }));
}

/** `cat /proc/net/unix`: inode and path. */
export function parseUnixSockets(text: string): string[] {
  return lines(text)
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .map((fields) => `${fields[6]} ${fields[7] ?? ''}`);
}

/** An address and port of a row as /proc/net/tcp prints them: words of the address in the host's byte order. */
export function procAddress(address: string, port: number): string {
  const bytes = address.includes(':') ? bytesOf6(address) : address.split('.').map(Number);
  let text = '';
  for (let at = 0; at < bytes.length; at += 4)
    for (let i = 3; i >= 0; i--) text += bytes[at + i]!.toString(16).padStart(2, '0');
  return `${text}:${port.toString(16).padStart(4, '0')}`.toUpperCase();
}

function bytesOf6(address: string): number[] {
  const dotted = address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, a, b, c, d) =>
    [(a << 8) | b, (c << 8) | d].map((group) => group.toString(16)).join(':'),
  );
  const [head = '', tail] = dotted.split('::');
  const groups = (text: string) =>
    text === '' ? [] : text.split(':').map((part) => Number.parseInt(part, 16));
  const before = groups(head);
  const after = tail === undefined ? [] : groups(tail);
  const all = [...before, ...new Array(8 - before.length - after.length).fill(0), ...after];
  return all.flatMap((group) => [group >> 8, group & 0xff]);
}
