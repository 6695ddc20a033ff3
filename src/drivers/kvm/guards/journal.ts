import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getU32, getU64Number, putU32, putU64 } from '../../../abi/bytes.ts';
import { kvmMemoryRegion } from '../../../abi/kvm.ts';
import type { ProcessMemory } from '../../../system/process-memory.ts';
import { putRequest, readRequest, type SlotRequest } from '../slots/slot-request.ts';

const INT3 = 0xcc;
/** A number that is not 0 while the MSR filter of the VM is set. */
const HEADER_SIZE = 16;
/** How the memory slots are made what they were: a number of requests, and these. */
const SLOTS_AT = HEADER_SIZE;
const RECORDS_AT = SLOTS_AT + 65_536;
/** Address in the VMM (0: free) and the byte that was there. */
const RECORD_SIZE = 16;
/** Far more than anybody sets; a damaged file is not read for ever. */
const MAX_RECORDS = 65_536;

/** A file without a name that a process and its guard share. */
export function openJournal(): number {
  const folder = mkdtempSync(join(tmpdir(), 'kvmi-journal-'));
  try {
    return openSync(join(folder, 'journal'), 'wx+', 0o600);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What has to be taken back when this process is killed, written down before it is done. */
export class Journal {
  readonly fd = openJournal();
  readonly #records = new Map<number, { readonly index: number; readonly original: number }>();
  readonly #free: number[] = [];
  #count = 0;

  constructor() {
    this.msrFilter = false;
  }

  /** Whether the MSR filter of the VM is set, or about to be. */
  set msrFilter(set: boolean) {
    const header = new Uint8Array(HEADER_SIZE);
    header[0] = Number(set);
    writeSync(this.fd, header, 0, HEADER_SIZE, 0);
  }

  /** What makes the memory slots of the VM what they were. */
  set slots(requests: readonly SlotRequest[]) {
    const bytes = new Uint8Array((requests.length + 1) * kvmMemoryRegion.size);
    putU32(bytes, 0, requests.length);
    for (const [i, request] of requests.entries()) putRequest(bytes, (i + 1) * kvmMemoryRegion.size, request);
    writeSync(this.fd, bytes, 0, bytes.length, SLOTS_AT);
  }

  /** Called before bytes are written to guest memory; what is returned, after it. Single int3 are breakpoints. */
  beforeWrite(hva: number, bytes: Uint8Array, memory: ProcessMemory): (() => void) | undefined {
    if (bytes.length === 1 && bytes[0] === INT3) {
      this.#note(hva, memory);
      return undefined;
    }
    if (this.#records.size === 0) return undefined;
    const over = [...this.#records.keys()].filter((each) => each >= hva && each < hva + bytes.length);
    if (over.length === 0) return undefined;
    return () => {
      for (const each of over) this.#drop(each);
    };
  }

  #note(hva: number, memory: ProcessMemory): void {
    const original = new Uint8Array(1);
    if (this.#records.has(hva) || !memory.read(hva, original) || original[0] === INT3) return;
    const index = this.#free.pop() ?? this.#count++;
    this.#records.set(hva, { index, original: original[0]! });
    this.#put(index, hva, original[0]!);
  }

  #drop(hva: number): void {
    const { index } = this.#records.get(hva)!;
    this.#records.delete(hva);
    this.#free.push(index);
    this.#put(index, 0, 0);
  }

  #put(index: number, hva: number, original: number): void {
    const record = new Uint8Array(RECORD_SIZE);
    putU64(record, 0, BigInt(hva));
    record[8] = original;
    writeSync(this.fd, record, 0, RECORD_SIZE, RECORDS_AT + index * RECORD_SIZE);
  }

  /** Takes every int3 out of guest memory that is still in it. */
  restore(memory: ProcessMemory): void {
    for (const [hva, { original }] of this.#records) restoreByte(memory, hva, original);
    for (const hva of [...this.#records.keys()]) this.#drop(hva);
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** Only where the int3 still is: what the guest has written there meanwhile is the guest's. */
function restoreByte(memory: ProcessMemory, hva: number, original: number): void {
  const now = new Uint8Array(1);
  if (memory.read(hva, now) && now[0] === INT3) memory.write(hva, Uint8Array.of(original));
}

/** For the guard: the requests that make the memory slots what they were; none when they are. */
export function journalledSlots(fd: number): SlotRequest[] {
  const bytes = new Uint8Array(RECORDS_AT - SLOTS_AT);
  readSync(fd, bytes, 0, bytes.length, SLOTS_AT);
  const count = Math.min(getU32(bytes, 0), bytes.length / kvmMemoryRegion.size - 1);
  return Array.from({ length: count }, (_, i) => readRequest(bytes, (i + 1) * kvmMemoryRegion.size));
}

/** For the guard: takes out what the journal of a killed process names. Returns whether the MSR filter was set. */
export function undoJournal(fd: number, memory: ProcessMemory): boolean {
  const header = new Uint8Array(HEADER_SIZE);
  readSync(fd, header, 0, HEADER_SIZE, 0);
  const record = new Uint8Array(RECORD_SIZE);
  for (let i = 0; i < MAX_RECORDS; i++) {
    if (readSync(fd, record, 0, RECORD_SIZE, RECORDS_AT + i * RECORD_SIZE) < RECORD_SIZE) break;
    const hva = getU64Number(record, 0);
    if (hva !== 0) restoreByte(memory, hva, record[8]!);
  }
  return header[0] !== 0;
}
