import { gunzipSync, gzipSync } from 'node:zlib';
import { KvmiError } from '../../error.ts';
import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import type { Session } from '../session.ts';
import { type ModuleText, readModuleTexts, readText, type TextImage } from './code.ts';
import { type Rights, readRights } from './credentials.ts';
import { type DispatchTable, readTables } from './dispatch.ts';

/** A guest at a time when it was thought to be well, to compare it with later, in the same boot. */
export interface Baseline {
  /** Of the kernel. */
  readonly banner: string;
  readonly text: TextImage;
  readonly modules: readonly ModuleText[];
  readonly tables: readonly DispatchTable[];
  readonly rights: ReadonlyMap<Gva, Rights>;
}

export function* takeBaseline(session: Session): Walk<Baseline> {
  return {
    banner: session.kernel.banner,
    text: yield* readText(session),
    modules: yield* readModuleTexts(session),
    tables: yield* readTables(session),
    rights: yield* readRights(session),
  };
}

const FORMAT = 1;
const MAX_SIZE = 1 << 30;

/** A baseline as the content of a file. */
export function baselineToBytes({ banner, text, modules, tables, rights }: Baseline): Uint8Array {
  const part = ({ start, bytes }: TextImage) => ({ start: String(start), size: bytes.length });
  const header = {
    format: FORMAT,
    banner,
    text: part(text),
    modules: modules.map((module) => ({ name: module.module, ...part(module) })),
    tables: tables.map((table) => ({ name: table.name, ...part(table) })),
    rights: [...rights].map(([task, { startNs, cred, capabilities, ...rest }]) => ({
      ...rest,
      task: String(task),
      startNs: String(startNs),
      cred: String(cred),
      capabilities: String(capabilities),
    })),
  };
  const parts = [text, ...modules, ...tables].map(({ bytes }) => bytes);
  return gzipSync(Buffer.concat([Buffer.from(`${JSON.stringify(header)}\n`), ...parts]), { level: 1 });
}

interface Part {
  readonly name: string;
  readonly start: string;
  readonly size: number;
}

/** What {@link baselineToBytes} gave. Throws a KvmiError with code E_BASELINE when it is something else. */
export function baselineFromBytes(bytes: Uint8Array): Baseline {
  try {
    return parse(gunzipSync(bytes, { maxOutputLength: MAX_SIZE }));
  } catch (cause) {
    throw new KvmiError('E_BASELINE', 'this is no baseline, or one that is damaged', {
      hint: 'Make a new one with `kvmi check VM --save-baseline FILE` while the guest is well.',
      cause,
    });
  }
}

function parse(content: Buffer): Baseline {
  const newline = content.indexOf('\n');
  const header = JSON.parse(content.toString('utf8', 0, newline));
  if (header.format !== FORMAT) throw new Error(`format ${header.format}`);
  let at = newline + 1;
  const image = ({ start, size }: Part): TextImage => {
    if (!(size >= 0 && at + size <= content.length)) throw new Error('it is cut off');
    at += size;
    return { start: BigInt(start), bytes: content.subarray(at - size, at) };
  };
  return {
    banner: String(header.banner),
    text: image(header.text),
    modules: header.modules.map((part: Part) => ({ module: part.name, ...image(part) })),
    tables: header.tables.map((part: Part) => ({ name: part.name, ...image(part) })),
    rights: new Map(
      header.rights.map(({ task, startNs, cred, capabilities, ...rest }: Record<string, string>) => [
        BigInt(task!),
        { ...rest, startNs: BigInt(startNs!), cred: BigInt(cred!), capabilities: BigInt(capabilities!) },
      ]),
    ),
  };
}
