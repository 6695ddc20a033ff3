import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { CapabilityName, Machine } from '../../src/machine/index.ts';
import { type CommandName, DIALECTS, type DialectName, type EventName } from '../../src/wire/index.ts';

const PAGE = join(import.meta.dirname, '..', '..', '..', 'docs', 'support.md');

const WORKS = 'works';
const NO_SUCH_MESSAGE = '–';
const NO = 'no';
const NOT_SHOWN = 'not shown';

/** The capability without which a command or event is not available; what is not here needs none. */
const CAPABILITY: { readonly [N in CommandName | EventName]?: CapabilityName } = {
  VM_WRITE_PHYSICAL: 'memory-write',
  VM_PAUSE_VCPU: 'pause',
  VM_SET_PAGE_ACCESS: 'page-write',
  VM_CONTROL_SPP: 'sub-page',
  VM_SET_PAGE_WRITE_BITMAP: 'sub-page',
  VM_SET_PAGE_SVE: 'virtualization-exception',
  VM_CREATE_EPT_VIEW: 'views',
  VM_DESTROY_EPT_VIEW: 'views',
  VCPU_GET_REGISTERS: 'registers',
  VCPU_SET_REGISTERS: 'set-registers',
  VCPU_GET_CPUID: 'cpuid',
  VCPU_CONTROL_CR: 'cr',
  VCPU_INJECT_EXCEPTION: 'inject',
  VCPU_GET_XCR: 'xcr',
  VCPU_GET_XSAVE: 'xsave',
  VCPU_SET_XSAVE: 'set-xsave',
  VCPU_GET_MTRR_TYPE: 'mtrr',
  VCPU_CONTROL_MSR: 'msr',
  VCPU_CONTROL_SINGLESTEP: 'singlestep',
  VCPU_SET_VE_INFO: 'virtualization-exception',
  VCPU_DISABLE_VE: 'virtualization-exception',
  VCPU_SET_EPT_VIEW: 'views',
  VCPU_GET_EPT_VIEW: 'views',
  VCPU_CONTROL_EPT_VIEW: 'views',
  VCPU_ALLOC_GFN: 'frames',
  VCPU_FREE_GFN: 'frames',
  VCPU_CHANGE_GFN: 'views',
  PAUSE: 'pause',
  HYPERCALL: 'hypercall',
  BREAKPOINT: 'breakpoint',
  CR: 'cr',
  TRAP: 'inject',
  XSETBV: 'xsetbv',
  DESCRIPTOR: 'descriptor',
  MSR: 'msr',
  PF: 'page-write',
  SINGLESTEP: 'singlestep',
  CREATE_VCPU: 'create-vcpu',
  CPUID: 'cpuid-event',
};

/** What no driver has, and why. */
const NEVER: { readonly [N in CommandName]?: string } = {
  VM_GET_MAP_TOKEN: 'mapping guest memory into another guest takes a patched kernel',
};

const DIALECT_NAMES = Object.keys(DIALECTS) as DialectName[];

function sectionStart(page: string, driver: string): number {
  return page.indexOf(`## ${driver}\n`);
}

/**
 * Whether docs/support.md has, or is about to get, a section for a driver. What a driver can do on one host it may not
 * on another: such a driver has the host's kind in its name, and the page shows the kinds that somebody has run.
 */
export function isDocumented(driver: string): boolean {
  return Boolean(process.env.KVMI_UPDATE_DOCS) || sectionStart(readFileSync(PAGE, 'utf8'), driver) >= 0;
}

/** What a run of the suite has seen work: commands that succeeded, events that arrived. */
export class Support {
  readonly #driver: string;
  readonly #seen = new Set<string>();
  #capabilities: Machine['capabilities'] | undefined;

  constructor(driver: string) {
    this.#driver = driver;
  }

  machine({ capabilities }: Pick<Machine, 'capabilities'>): void {
    this.#capabilities = capabilities;
  }

  saw(dialect: DialectName, name: CommandName | EventName): void {
    this.#seen.add(`${dialect} ${name}`);
  }

  #mark(dialect: DialectName, name: CommandName | EventName): string {
    const table = DIALECTS[dialect];
    const exists = table.command(name as CommandName) ?? table.event(name as EventName);
    if (!exists) return NO_SUCH_MESSAGE;
    if (this.#seen.has(`${dialect} ${name}`)) return WORKS;
    return this.#refusal(name) === undefined ? NOT_SHOWN : NO;
  }

  /** Why a message is refused; undefined when the driver takes it. */
  #refusal(name: CommandName | EventName): string | undefined {
    const capability = CAPABILITY[name];
    const support = capability && this.#capabilities?.[capability];
    return NEVER[name as CommandName] ?? (typeof support === 'string' ? support : undefined);
  }

  #row(name: CommandName | EventName): string {
    const marks = DIALECT_NAMES.map((dialect) => this.#mark(dialect, name));
    const because = marks.includes(NO) ? this.#refusal(name) : undefined;
    return `| ${name} | ${marks.join(' | ')} | ${because ?? ''} |`;
  }

  section(): string {
    const commands = new Set(
      DIALECT_NAMES.flatMap((name) => DIALECTS[name].commands.map((each) => each.name)),
    );
    const events = new Set(DIALECT_NAMES.flatMap((name) => DIALECTS[name].events.map((each) => each.name)));
    const head = `| | ${DIALECT_NAMES.join(' | ')} | because |\n|---|---|---|---|---|`;
    return `## ${this.#driver}

${head}
${[...commands]
  .sort()
  .map((name) => this.#row(name))
  .join('\n')}

${head.replace('| |', '| event |')}
${[...events]
  .sort()
  .map((name) => this.#row(name))
  .join('\n')}
`;
  }

  /** Compares the driver's section of docs/support.md with this run, or writes it (KVMI_UPDATE_DOCS=1). */
  check(): void {
    const page = readFileSync(PAGE, 'utf8');
    const start = sectionStart(page, this.#driver);
    const next = page.indexOf('\n## ', start + 1);
    const end = next < 0 ? page.length : next + 1;
    const section = this.section();
    if (process.env.KVMI_UPDATE_DOCS) {
      const before = start < 0 ? `${page.trimEnd()}\n\n` : page.slice(0, start);
      const after = start < 0 ? '' : page.slice(end);
      writeFileSync(PAGE, `${before}${section}${after && `\n${after.trimStart()}`}`);
      return;
    }
    assert.equal(
      start < 0 ? '' : page.slice(start, end).trimEnd(),
      section.trimEnd(),
      'docs/support.md is what this run shows; KVMI_UPDATE_DOCS=1 writes it',
    );
  }
}
