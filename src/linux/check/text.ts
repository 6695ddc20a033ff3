import type { Gva } from '../../machine/index.ts';
import { memoriesOf, moduleList } from '../modules.ts';
import type { Session } from '../session.ts';
import { hex } from '../text.ts';
import type { Walk } from '../walk.ts';
import { checkDispatchers, checkFunctionStarts } from './branches.ts';
import type { Finding } from './finding.ts';
import { checkHooks, symbolic } from './hooks.ts';
import { isLegitimate, MAX_SITE, type Site, type Sites, sitesOf } from './sites.ts';

const MAX_TEXT = 256 << 20;
const PAGE = 4096;
/** So many findings about text are enough to know. */
const MAX_FINDINGS = 256;

/** A copy of the kernel's code. */
export interface TextImage {
  readonly start: Gva;
  readonly bytes: Uint8Array;
}

export function textRange(session: Session): { readonly start: Gva; readonly end: Gva } {
  return { start: session.symbol('_stext'), end: session.symbol('_etext') };
}

export function* readText(session: Session): Walk<TextImage> {
  const { start, end } = textRange(session);
  return { start, bytes: yield* session.kernel.readBulk(start, Math.min(Number(end - start), MAX_TEXT)) };
}

/** Whether calls in the kernel's text may lead there. */
export type CodeTest = (address: Gva) => boolean;

export function* codeTest(session: Session, sites: Sites): Walk<CodeTest> {
  const { start, end } = textRange(session);
  const ranges = [{ start, end }];
  for (const module of yield* session.attempt('modules', moduleList(session), []))
    for (const { base, size } of yield* memoriesOf(session, module))
      ranges.push({ start: base, end: base + BigInt(size) });
  return (address) =>
    sites.trampolines.has(address) || ranges.some((range) => address >= range.start && address < range.end);
}

/** The code of a module. */
export interface ModuleText extends TextImage {
  readonly module: string;
}

export function* readModuleTexts(session: Session): Walk<ModuleText[]> {
  const texts: ModuleText[] = [];
  for (const module of yield* session.attempt('modules', moduleList(session), [])) {
    const name = module.text('name');
    const size = module.number('textSize');
    if (size > MAX_TEXT) continue;
    const start = module.pointer('base');
    const walk = session.kernel.readBulk(start, size);
    const bytes = yield* session.attempt(`the code of module ${name}`, walk, undefined);
    if (bytes !== undefined) texts.push({ module: name, start, bytes });
  }
  return texts;
}

/** Compares code with an earlier copy of it, and what stands at places that may change with what may. */
export function* checkText(
  session: Session,
  baseline: { readonly text: TextImage; readonly modules: readonly ModuleText[] } | undefined,
): Walk<Finding[]> {
  const text = yield* readText(session);
  const sites = yield* sitesOf(session);
  const isCode = yield* codeTest(session, sites);
  const findings = [
    ...checkFunctionStarts(session, text, sites),
    ...checkSites(session, text, sites, isCode),
    ...(yield* checkDispatchers(session, text)),
    ...(yield* session.attempt('hooks', checkHooks(session, isCode), [])),
  ];
  if (baseline !== undefined) {
    findings.push(...changes(session, baseline.text, text, sites));
    for (const now of yield* readModuleTexts(session)) {
      const before = baseline.modules.find(({ module }) => module === now.module);
      // One that was unloaded and loaded again lies elsewhere.
      if (before?.start === now.start && before.bytes.length === now.bytes.length)
        findings.push(...changes(session, before, now, sites));
    }
  }
  if (findings.length > MAX_FINDINGS)
    session.note(`${findings.length} findings about text cut at ${MAX_FINDINGS}`);
  return findings.slice(0, MAX_FINDINGS);
}

function checkSites(session: Session, text: TextImage, sites: Sites, isCode: CodeTest): Finding[] {
  const findings: Finding[] = [];
  const end = text.start + BigInt(text.bytes.length - MAX_SITE);
  for (const [address, site] of sites.at) {
    if (address < text.start || address >= end) continue;
    const at = Number(address - text.start);
    const bytes = text.bytes.subarray(at, at + MAX_SITE);
    // Only a branch can lead where it should not; anything else is seen by comparison with the baseline.
    if (site.kind !== 'ftrace' && site.kind !== 'static key') continue;
    if (isLegitimate(site, address, bytes, isCode)) continue;
    findings.push({
      check: 'text',
      subject: symbolic(session, address),
      address: hex(address),
      expected: `what the kernel puts at a ${site.kind} site`,
      found: Buffer.from(bytes).toString('hex'),
    });
  }
  return findings;
}

/** Runs of bytes that differ, but for those that a site explains. */
function changes(session: Session, before: TextImage, now: TextImage, sites: Sites): Finding[] {
  const findings: Finding[] = [];
  const then = Buffer.from(before.bytes.buffer, before.bytes.byteOffset, before.bytes.length);
  for (let page = 0; page < now.bytes.length && findings.length <= MAX_FINDINGS; page += PAGE) {
    const end = Math.min(page + PAGE, now.bytes.length);
    if (then.compare(now.bytes, page, end, page, end) === 0) continue;
    for (let at = page; at < end; at++) {
      if (now.bytes[at] === before.bytes[at] || siteAt(sites, now.start + BigInt(at)) !== undefined) continue;
      let stop = at + 1;
      while (stop < end && stop - at < 16 && now.bytes[stop] !== before.bytes[stop]) stop++;
      findings.push({
        check: 'text',
        subject: symbolic(session, now.start + BigInt(at)),
        address: hex(now.start + BigInt(at)),
        expected: then.toString('hex', at, stop),
        found: Buffer.from(now.bytes.subarray(at, stop)).toString('hex'),
      });
      at = stop;
    }
  }
  return findings;
}

function siteAt(sites: Sites, address: Gva): Site | undefined {
  for (let back = 0n; back < BigInt(MAX_SITE); back++) {
    const site = sites.at.get(address - back);
    if (site !== undefined) return site;
  }
  return undefined;
}
