import { ProbeAddresses } from './probe-addresses.ts';

/** Bytes that one bit of {@link CodePage} stands for when writes are compared with decoded code. */
const CHUNK_SHIFT = 6;
/** Pages with decoded code, and instructions in blocks, that are kept before all of it is dropped. */
const PAGE_LIMIT = 512;
const SIZE_LIMIT = 300_000;

/** What the cache has to know of a decoded instruction: where it starts in its page, and where the next one does. */
export interface Decoded {
  readonly start: number;
  readonly next: number;
}

/** Instructions that are executed one after the other: only the last one can go elsewhere. */
export class Block<O extends Decoded> {
  readonly ops: O[];
  /** How many there are; 0 once the code was written to, also while the block runs. */
  count: number;

  constructor(ops: O[]) {
    this.ops = ops;
    this.count = ops.length;
  }
}

/** The decoded code of one frame, in one decoding mode. */
export class CodePage<O extends Decoded> {
  /** Offset of the frame in the backing store. */
  readonly frame: number;
  readonly mode64: boolean;
  /** By page offset: 1 + the position in `blocks` of the block that begins there, or 0. */
  readonly blockAt = new Uint16Array(4096);
  readonly blocks: (Block<O> | undefined)[] = [undefined];
  /** Instructions by page offset, shared by the blocks that they are in. */
  readonly ops = new Map<number, O>();
  /** Instructions that continue on the next page; checked against its bytes every time. */
  readonly crossing = new Map<number, O>();
  readonly #chunks = new Uint8Array(4096 >>> CHUNK_SHIFT);

  constructor(frame: number, mode64: boolean) {
    this.frame = frame;
    this.mode64 = mode64;
  }

  addBlock(offset: number, block: Block<O>): void {
    this.blockAt[offset] = this.blocks.length;
    this.blocks.push(block);
  }

  addOp(op: O): void {
    this.ops.set(op.start, op);
    const last = Math.min(op.next - 1, 4095) >>> CHUNK_SHIFT;
    for (let chunk = op.start >>> CHUNK_SHIFT; chunk <= last; chunk++) this.#chunks[chunk] = 1;
  }

  /** Whether a write to these page offsets may change decoded code. */
  overlaps(from: number, to: number): boolean {
    for (let chunk = from >>> CHUNK_SHIFT; chunk <= (to - 1) >>> CHUNK_SHIFT; chunk++) {
      if (this.#chunks[chunk]) return true;
    }
    return false;
  }

  clear(): void {
    for (let i = 1; i < this.blocks.length; i++) this.blocks[i]!.count = 0;
    this.blocks.length = 1;
    this.blockAt.fill(0);
    this.ops.clear();
    this.crossing.clear();
    this.#chunks.fill(0);
  }
}

/** What the cache tells the processors that run its code. */
export interface CodeListener {
  /** Code was decoded from the frame: writes to it must be reported. */
  codeAdded(frame: number): void;
  /** Every CodePage is void. */
  codeDropped(): void;
}

/** All decoded code of a machine, by frame. */
export class CodeCache<O extends Decoded> {
  /** Code is decoded in another way at these; when they change, everything has to be dropped. */
  readonly probes = new ProbeAddresses();
  readonly listeners: CodeListener[] = [];
  readonly #pages = new Map<number, CodePage<O>>();
  /** By frame number: whether a write to the frame must be looked at. */
  readonly #hasCode: Uint8Array;
  /** Instructions that were put into blocks since everything was dropped last. */
  #size = 0;

  constructor(frames: number) {
    this.#hasCode = new Uint8Array(frames);
  }

  /** Every page that has, or had, decoded code. */
  get pages(): readonly CodePage<O>[] {
    return [...this.#pages.values()];
  }

  hasCode(frame: number): boolean {
    return this.#hasCode[frame >>> 12] !== 0;
  }

  page(frame: number, mode64: boolean): CodePage<O> {
    const key = frame + (mode64 ? 1 : 0);
    let page = this.#pages.get(key);
    if (!page) {
      if (this.#pages.size >= PAGE_LIMIT) this.dropAll();
      page = new CodePage<O>(frame, mode64);
      this.#pages.set(key, page);
    }
    return page;
  }

  /** True when so much was decoded that it is time to drop it all. */
  get full(): boolean {
    return this.#size > SIZE_LIMIT;
  }

  /** To be called when a block was decoded from a page. */
  decoded(page: CodePage<O>, block: Block<O>): void {
    this.#size += block.count;
    if (this.hasCode(page.frame)) return;
    this.#hasCode[page.frame >>> 12] = 1;
    for (const listener of this.listeners) listener.codeAdded(page.frame);
  }

  /** To be called for every write to a frame that {@link hasCode}; offsets in the page. */
  wrote(frame: number, from: number, to: number): void {
    const page32 = this.#pages.get(frame);
    const page64 = this.#pages.get(frame + 1);
    if (!page32?.overlaps(from, to) && !page64?.overlaps(from, to)) return;
    page32?.clear();
    page64?.clear();
    this.#hasCode[frame >>> 12] = 0;
  }

  dropAll(): void {
    this.#size = 0;
    for (const page of this.#pages.values()) page.clear();
    this.#pages.clear();
    this.#hasCode.fill(0);
    for (const listener of this.listeners) listener.codeDropped();
  }
}
