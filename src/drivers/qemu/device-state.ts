import { KvmiError } from '../../error.ts';
import {
  APIC_LAYOUT,
  APIC_SUBSECTIONS,
  APIC_VERSION,
  COMMON_LAYOUT,
  COMMON_VERSION,
  CPU_LAYOUT,
  CPU_SUBSECTIONS,
  CPU_VERSION,
  type Layout,
  type LayoutField,
} from './cpu-layout.ts';

const SECTION_FULL = 0x04;
const SUBSECTION = 0x05;
const MAGIC = 0x5145564d;
const FILE_VERSION = 3;

/** No device state is larger: a vCPU takes 2 KiB, a disk controller some more. */
export const DEVICE_STATE_LIMIT = 64 << 20;

/** One section of a device state with its subsections: named big-endian integers. */
export class Section {
  readonly #bytes: Buffer;
  readonly #fields: ReadonlyMap<string, LayoutField & { readonly base: number }>;

  /** The section that `fields` place in `bytes`. */
  constructor(bytes: Buffer, fields: ReadonlyMap<string, LayoutField & { readonly base: number }>) {
    this.#bytes = bytes;
    this.#fields = fields;
  }

  has(name: string): boolean {
    return this.#fields.has(name);
  }

  /** Element `index` of a field of at most 8 bytes. */
  get(name: string, index = 0): bigint {
    const { size } = this.#field(name, index);
    return size === 8 ? this.#bytes.readBigUInt64BE(this.#at(name, index)) : BigInt(this.number(name, index));
  }

  /** Element `index` of a field of at most 6 bytes. */
  number(name: string, index = 0): number {
    const { size } = this.#field(name, index);
    return this.#bytes.readUIntBE(this.#at(name, index), size);
  }

  /** Copies element `index` of a vector register, whose 64-bit parts are stored lowest first, as the guest sees it. */
  copyVector(name: string, index: number, into: Uint8Array, at: number): void {
    const { size } = this.#field(name, index);
    const from = this.#at(name, index);
    for (let i = 0; i < size; i++) into[at + i] = this.#bytes[from + (i & ~7) + 7 - (i & 7)]!;
  }

  #field(name: string, index: number): LayoutField & { readonly base: number } {
    const field = this.#fields.get(name);
    if (!field || index >= field.count) {
      throw new KvmiError('E_QEMU_STATE', `QEMU's device state has no field ${name}[${index}]`);
    }
    return field;
  }

  #at(name: string, index: number): number {
    const { base, offset, size } = this.#field(name, index);
    return base + offset + index * size;
  }
}

/** What a device state says of one vCPU. */
export interface CpuSections {
  readonly cpu: Section;
  readonly common: Section | undefined;
  /** Absent when the VM has no local APICs. */
  readonly apic: Section | undefined;
}

/**
 * The vCPUs' sections of what `xen-save-devices-state` writes, in the order of the vCPUs. The file describes itself only in
 * part: sections are found by their headers, and read by the layouts of this version of QEMU's format.
 * E_QEMU_STATE when it is not such a file, or has another version.
 */
export function parseDeviceState(bytes: Buffer, vcpus: number): CpuSections[] {
  if (bytes.length < 8 || bytes.length > DEVICE_STATE_LIMIT || bytes.readUInt32BE(0) !== MAGIC) {
    throw new KvmiError('E_QEMU_STATE', 'QEMU wrote no device state');
  }
  if (bytes.readUInt32BE(4) !== FILE_VERSION) {
    throw new KvmiError('E_QEMU_STATE', `QEMU's device state has version ${bytes.readUInt32BE(4)}, not 3`);
  }
  const cpus = findSections(bytes, 'cpu', CPU_VERSION, CPU_LAYOUT, CPU_SUBSECTIONS);
  const apics = findSections(bytes, 'apic', APIC_VERSION, APIC_LAYOUT, APIC_SUBSECTIONS);
  const commons = findSections(bytes, 'cpu_common', COMMON_VERSION, COMMON_LAYOUT, new Map());
  if (cpus.length !== vcpus) {
    const text = `QEMU's device state has ${cpus.length} sections "cpu" of version ${CPU_VERSION}, not ${vcpus}`;
    throw new KvmiError('E_QEMU_STATE', text);
  }
  return cpus.map((cpu, i) => ({
    cpu,
    common: commons.length === vcpus ? commons[i] : undefined,
    apic: apics.length === vcpus ? apics[i] : undefined,
  }));
}

/** All sections of one name and version, by instance. */
function findSections(
  bytes: Buffer,
  name: string,
  version: number,
  layout: Layout,
  subsections: ReadonlyMap<string, Layout>,
): Section[] {
  const found = new Map<number, Section>();
  const needle = Buffer.concat([Buffer.from([name.length]), Buffer.from(name)]);
  const headerSize = needle.length + 8;
  for (let at = bytes.indexOf(needle); at >= 0; at = bytes.indexOf(needle, at + 1)) {
    const start = at + headerSize;
    // Before the name: the kind of section and its number.
    if (at < 5 || bytes[at - 5] !== SECTION_FULL || start + layout.size > bytes.length) continue;
    const instance = bytes.readUInt32BE(at + needle.length);
    if (bytes.readUInt32BE(at + needle.length + 4) !== version || found.has(instance)) continue;
    found.set(instance, readSection(bytes, start, layout, subsections));
  }
  return [...found.entries()].sort(([a], [b]) => a - b).map(([, section]) => section);
}

function readSection(
  bytes: Buffer,
  start: number,
  layout: Layout,
  subsections: ReadonlyMap<string, Layout>,
): Section {
  const fields = new Map<string, LayoutField & { base: number }>();
  const add = (part: Layout, base: number) => {
    for (const [name, field] of part.fields) fields.set(name, { ...field, base });
  };
  add(layout, start);
  let at = start + layout.size;
  while (bytes[at] === SUBSECTION) {
    const length = bytes[at + 1] ?? 0;
    const part = subsections.get(bytes.toString('latin1', at + 2, at + 2 + length));
    const base = at + 2 + length + 4;
    if (part === undefined || base + part.size > bytes.length) break;
    add(part, base);
    at = base + part.size;
  }
  return new Section(bytes, fields);
}
