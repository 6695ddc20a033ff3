/** ELF core files, as far as memory dumps are concerned: the magic of a 64-bit little-endian file, sizes, and numbers. */
export const ELF_MAGIC = Buffer.from('\x7fELF\x02\x01', 'latin1');

export const ELF_CORE = {
  header: 64,
  program: 56,
  load: 1,
  note: 4,
  type: 4,
  machine: 62,
  /** With this many program headers or more, their number is in the first section header. */
  manyPrograms: 0xffff,
} as const;
