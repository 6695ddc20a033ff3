import type { Gva } from '../../machine/index.ts';
import type { Walk } from '../../reading/walk.ts';
import { memoriesOf, moduleList } from '../modules.ts';
import type { Session } from '../session.ts';
import { checkDispatchers, checkFunctionStarts } from './branches.ts';
import {
  type CodeTest,
  type ModuleText,
  readModuleTexts,
  readText,
  type TextImage,
  textRange,
} from './code.ts';
import type { Finding } from './finding.ts';
import { checkHooks, symbolic } from './hooks.ts';
import { isLegitimate, MAX_SITE, type Site, type Sites, sitesOf } from './sites.ts';

const PAGE = 4096;
/** So many findings about text are enough to know. */
const MAX_FINDINGS = 256;

export function* codeTest(session: Session, sites: Sites): Walk<CodeTest> {
  const { start, end } = textRange(session);
  const ranges = [{ start, end }];
  for (const module of yield* session.attempt('modules', moduleList(session), []))
    for (const { base, size } of yield* memoriesOf(session, module))
      ranges.push({ start: base, end: base + BigInt(size) });
  return (address) =>
    sites.trampolines.has(address) || ranges.some((range) => address >= range.start && address < range.end);
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
    for (const finding of changes(session, baseline.text, text, sites)) findings.push(finding);
    for (const now of yield* readModuleTexts(session)) {
      const before = baseline.modules.find(({ module }) => module === now.module);
      // One that was unloaded and loaded again lies elsewhere.
      if (before?.start === now.start && before.bytes.length === now.bytes.length)
        for (const finding of changes(session, before, now, sites)) findings.push(finding);
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
      address,
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
        address: now.start + BigInt(at),
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
