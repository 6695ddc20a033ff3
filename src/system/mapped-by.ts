import { type BigIntStats, closeSync, constants, fstatSync, openSync } from 'node:fs';
import { descriptors, type Mapping, readText } from './proc.ts';

const { O_NONBLOCK, O_RDONLY, O_RDWR } = constants;
const O_ACCMODE = 3;
const O_PATH = 0o10000000;

/** A file that another process has mapped. */
export interface OpenedFile {
  readonly fd: number;
  readonly size: number;
  readonly writable: boolean;
}

/**
 * Opens the file behind a mapping of `pid`, through one of its descriptors. The process may be an enemy, and this one
 * may have more rights: so the file has to be a regular one (memfd, tmpfs and hugetlbfs included), the very one that the
 * kernel says is mapped, and it is opened for writing only where the mapping and the descriptor are writable. Undefined when
 * there is no such descriptor, or it cannot be opened.
 */
export function openMapped(pid: number, mapping: Mapping): OpenedFile | undefined {
  if (mapping.inode === 0) return undefined;
  const mayWrite = mapping.permissions[1] === 'w';
  let readOnly: OpenedFile | undefined;
  for (const fd of descriptors(pid)) {
    const file = openDescriptor(pid, fd, mapping, mayWrite);
    if (file?.writable === mayWrite) {
      if (readOnly) closeSync(readOnly.fd);
      return file;
    }
    if (file && readOnly) closeSync(file.fd);
    else if (file) readOnly = file;
  }
  return readOnly;
}

/** A descriptor number may name another file at any moment: what was checked is what is opened. */
function openDescriptor(
  pid: number,
  fd: number,
  mapping: Mapping,
  mayWrite: boolean,
): OpenedFile | undefined {
  let place: number | undefined;
  try {
    // Opens nothing yet: no device starts, no pipe waits.
    place = openSync(`/proc/${pid}/fd/${fd}`, O_PATH);
    if (!isMapped(fstatSync(place, { bigint: true }), mapping)) return undefined;
    const flags = flagsOf(pid, fd);
    if (flags === undefined || flags & O_PATH) return undefined;
    const writable = mayWrite && (flags & O_ACCMODE) === O_RDWR;
    const opened = openSync(`/proc/self/fd/${place}`, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK);
    return { fd: opened, size: fstatSync(opened).size, writable };
  } catch {
    return undefined;
  } finally {
    if (place !== undefined) closeSync(place);
  }
}

function isMapped(found: BigIntStats, { device, inode }: Mapping): boolean {
  const [major, minor] = device.split(':').map((hex) => Number.parseInt(hex, 16));
  const { dev } = found;
  return (
    found.isFile() &&
    Number(found.ino) === inode &&
    deviceMajor(Number(dev)) === major &&
    deviceMinor(Number(dev)) === minor
  );
}

/** What a descriptor was opened with. */
function flagsOf(pid: number, fd: number): number | undefined {
  const flags = /^flags:\s+([0-7]+)$/m.exec(readText(`/proc/${pid}/fdinfo/${fd}`) ?? '')?.[1];
  return flags === undefined ? undefined : Number.parseInt(flags, 8);
}

/** The kernel's encoding of device numbers in `st_dev`. */
function deviceMajor(dev: number): number {
  return Math.floor(dev / 256) % 4096;
}

function deviceMinor(dev: number): number {
  return (dev % 256) + Math.floor(dev / 2 ** 20) * 256;
}
