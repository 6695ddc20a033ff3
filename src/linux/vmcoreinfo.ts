import { type Gpa, PAGE_SIZE, type PhysicalMemory } from '../machine/index.ts';
import { endsFirst, type OnProgress, ramOf, scan } from '../reading/scan.ts';
import { run, type Walk, wait } from '../reading/walk.ts';

/**
 * What a kernel tells crash-dump tools about itself (Documentation/admin-guide/kdump/vmcoreinfo.rst): `KEY=VALUE`
 * lines in a page of their own. Everything in it is the guest's word.
 */
export class Vmcoreinfo {
  /** Where the page was found; 0 when the text came with a dump. */
  readonly gpa: Gpa;
  readonly text: string;
  readonly lines: ReadonlyMap<string, string>;

  constructor(text: string, gpa: Gpa = 0) {
    this.gpa = gpa;
    this.text = text;
    const lines = new Map<string, string>();
    for (const line of text.split('\n')) {
      const equals = line.indexOf('=');
      if (equals > 0) lines.set(line.slice(0, equals), line.slice(equals + 1));
    }
    this.lines = lines;
  }

  /** As in `uname -r`. */
  get release(): string {
    return this.lines.get('OSRELEASE') ?? '';
  }

  /** Lower-case hexadecimal digits; undefined before Linux 5.9. */
  get buildId(): string | undefined {
    const id = this.lines.get('BUILD-ID');
    return id !== undefined && /^[0-9a-f]{8,128}$/.test(id) ? id : undefined;
  }

  /** The run-time address of a symbol that is listed. */
  symbol(name: string): bigint | undefined {
    return parse(this.lines.get(`SYMBOL(${name})`), 16);
  }

  number(name: string): bigint | undefined {
    return parse(this.lines.get(`NUMBER(${name})`), 10);
  }

  /** How far KASLR moved the kernel's virtual addresses. */
  get kernelOffset(): bigint {
    return parse(this.lines.get('KERNELOFFSET'), 16) ?? 0n;
  }
}

function parse(text: string | undefined, base: 10 | 16): bigint | undefined {
  const digits = base === 16 ? /^[0-9a-f]{1,16}$/ : /^-?[0-9]{1,20}$/;
  if (text === undefined || !digits.test(text)) return undefined;
  return BigInt(base === 16 ? `0x${text}` : text);
}

const START = Buffer.from('OSRELEASE=');

/** Guests left by a reboot are rare; pages forged by a hostile guest may be many. */
const MAX_CANDIDATES = 64;

/** Offers the VMCOREINFO pages in `memory`, those at `places` first, to `accept`, until it answers something. */
export function* findVmcoreinfo<T>(
  memory: PhysicalMemory,
  {
    places = [],
    onProgress,
  }: { readonly places?: readonly Gpa[]; readonly onProgress?: OnProgress | undefined },
  accept: (info: Vmcoreinfo) => Walk<T | undefined>,
): Walk<T | undefined> {
  let candidates = 0;
  const offer = function* (bytes: Buffer, gpa: Gpa): Walk<{ readonly accepted: T | undefined } | undefined> {
    for (const info of pagesIn(bytes, gpa)) {
      if (candidates++ >= MAX_CANDIDATES) return { accepted: undefined };
      const accepted = yield* accept(info);
      if (accepted !== undefined) return { accepted };
    }
    return undefined;
  };
  const page = Buffer.allocUnsafeSlow(PAGE_SIZE);
  for (const place of places) {
    if (!(yield* wait(memory.read(place, page)))) continue;
    const found = yield* offer(page, place);
    if (found) return found.accepted;
  }
  const options = { phase: 'VMCOREINFO', onProgress };
  const ranges = endsFirst(ramOf(memory.regions));
  const found = yield* scan(memory, ranges, options, (bytes, gpa) => run(offer(bytes, gpa)));
  return found?.accepted;
}

function* pagesIn(bytes: Buffer, gpa: Gpa): IterableIterator<Vmcoreinfo> {
  for (let at = 0; at + START.length <= bytes.length; at += PAGE_SIZE) {
    if (bytes[at] !== 0x4f || bytes.compare(START, 0, START.length, at, at + START.length) !== 0) continue;
    const end = bytes.indexOf(0, at);
    const page = Math.min(at + PAGE_SIZE, bytes.length);
    yield new Vmcoreinfo(bytes.toString('latin1', at, end < 0 || end > page ? page : end), gpa + at);
  }
}
