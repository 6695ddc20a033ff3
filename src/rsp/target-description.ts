import { KvmiError } from '../error.ts';

/** One register as the target description has it. */
export interface GdbRegister {
  /** The number that `p` and `P` take. */
  readonly number: number;
  /** In bytes. */
  readonly size: number;
  /** Where it lies in the answer to `g`, in bytes. */
  readonly offset: number;
}

const REGISTER_LIMIT = 4096;

/** The documents that a target description includes. */
export function includedDocuments(xml: string): string[] {
  return elements(xml, 'xi:include').map((attributes) => attributes.get('href') ?? '');
}

/**
 * The registers of a target description, by name. `documents` are the included documents in order: registers
 * are numbered through all of them, and `regnum` sets the number ("Target Descriptions", Format).
 */
export function parseRegisters(documents: readonly string[]): ReadonlyMap<string, GdbRegister> {
  const registers = new Map<string, GdbRegister>();
  let number = 0;
  let offset = 0;
  for (const document of documents) {
    for (const attributes of elements(document, 'reg')) {
      const name = attributes.get('name');
      const size = Number(attributes.get('bitsize')) / 8;
      if (name === undefined || !(size >= 1 && size <= 64)) {
        throw new KvmiError('E_GDB_PROTOCOL', 'the target description has a register without name or size');
      }
      const regnum = attributes.get('regnum');
      if (regnum !== undefined) number = Number(regnum);
      registers.set(name, { number: number++, size, offset });
      offset += size;
    }
  }
  if (registers.size === 0 || registers.size > REGISTER_LIMIT) {
    throw new KvmiError('E_GDB_PROTOCOL', `the target description has ${registers.size} registers`);
  }
  return registers;
}

/** The attributes of every element of one name, comments left out. */
function elements(xml: string, name: string): Map<string, string>[] {
  const found = withoutComments(xml).matchAll(new RegExp(`<${name}\\s([^<>]*)>`, 'g'));
  return Array.from(found, (match) => {
    const attributes = match[1]!.matchAll(/([\w:]+)\s*=\s*"([^"]*)"/g);
    return new Map(Array.from(attributes, (attribute) => [attribute[1]!, attribute[2]!]));
  });
}

function withoutComments(xml: string): string {
  let text = '';
  let at = 0;
  for (;;) {
    const start = xml.indexOf('<!--', at);
    if (start < 0) return text + xml.slice(at);
    text += xml.slice(at, start);
    const end = xml.indexOf('-->', start + 4);
    if (end < 0) return text;
    at = end + 3;
  }
}
