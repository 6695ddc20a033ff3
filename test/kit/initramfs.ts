import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

/** A file of the guest: bytes, or a path on this host. Executable unless `mode` says otherwise. */
export interface GuestFile {
  readonly path: string;
  readonly content: Uint8Array | string;
  readonly mode?: number;
}

const DIRECTORY = 0o040755;
const REGULAR = 0o100000;
const CHARACTER_DEVICE = 0o020600;

/** One member of a "newc" cpio archive. */
function member(path: string, mode: number, content: Uint8Array, device = { major: 0, minor: 0 }): Buffer {
  const name = Buffer.from(`${path}\0`);
  const numbers = [
    0, // inode
    mode,
    0, // uid
    0, // gid
    1, // links
    0, // mtime
    content.length,
    0, // device of the archive
    0,
    device.major,
    device.minor,
    name.length,
    0, // check
  ];
  const header = `070701${numbers.map((number) => number.toString(16).padStart(8, '0')).join('')}`;
  return Buffer.concat([pad4(Buffer.concat([Buffer.from(header), name])), pad4(Buffer.from(content))]);
}

function pad4(bytes: Buffer): Buffer {
  return bytes.length % 4 === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(4 - (bytes.length % 4))]);
}

/**
 * The guest's first process. It mounts the usual file systems, prints a clock on the first serial port, and
 * serves commands on the second: a line `ID BASE64`, answered by `@ID STATUS SIZE`, a line feed and the output.
 */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/bin /usr/sbin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
stty -F /dev/ttyS1 raw -echo
(n=0; while :; do n=$((n+1)); echo "tick $n" >/dev/ttyS0; sleep 0.1; done) &
exec 3<>/dev/ttyS1
echo @ready >&3
while IFS=' ' read -r id command <&3; do
  echo "$command" | base64 -d >/tmp/.command
  sh /tmp/.command >/tmp/.output 2>&1 </dev/null
  echo "@$id $? $(wc -c </tmp/.output)" >&3
  cat /tmp/.output >&3
done
`;

/** A gzipped initramfs with busybox, {@link INIT} and `files`. */
export function buildInitramfs(busybox: string, files: readonly GuestFile[] = []): Buffer {
  const empty = new Uint8Array();
  const directories = new Set(['bin', 'dev']);
  for (const { path } of files) {
    const parts = path.replace(/^\//, '').split('/').slice(0, -1);
    parts.forEach((_, i) => {
      directories.add(parts.slice(0, i + 1).join('/'));
    });
  }
  const members = [
    ...[...directories].map((path) => member(path, DIRECTORY, empty)),
    member('dev/console', CHARACTER_DEVICE, empty, { major: 5, minor: 1 }),
    member('bin/busybox', REGULAR | 0o755, readFileSync(busybox)),
    member('init', REGULAR | 0o755, Buffer.from(INIT)),
    ...files.map(({ path, content, mode }) => {
      const bytes = typeof content === 'string' ? readFileSync(content) : content;
      return member(path.replace(/^\//, ''), REGULAR | (mode ?? 0o755), bytes);
    }),
    member('TRAILER!!!', 0, empty),
  ];
  return gzipSync(Buffer.concat(members), { level: 1 });
}
