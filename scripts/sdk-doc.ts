import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const ROOT = join(import.meta.dirname, '..', '..');

/** A page of the reference: modules of the package, for one kind of reader. */
interface Page {
  readonly file: string;
  readonly title: string;
  readonly about: string;
  readonly modules: readonly (readonly [name: string, about: string])[];
}

/** In the order in which they describe what several modules export. */
const PAGES: readonly Page[] = [
  {
    file: 'sdk.md',
    title: 'SDK',
    about:
      '[Write a tool](../how-to/write-a-tool.md) shows how the parts go together. Other pages: [programs that open VMs and ' +
      'print rows](programs.md), [a Linux guest](linux.md), [drivers](drivers.md), [the contract of a driver](machine.md), ' +
      '[host side, messages and structures](host.md).',
    modules: [
      ['kvmi', 'What most tools need.'],
      ['kvmi/tool', 'The whole SDK for introspection tools.'],
    ],
  },
  {
    file: 'programs.md',
    title: 'Programs on kvmi',
    about: 'For programs that find VMs, open them by name and print what they find as kvmi does.',
    modules: [
      ['kvmi/targets', 'Machines of this host, by name.'],
      ['kvmi/rows', 'Rows with columns, for people and programs.'],
      ['kvmi/gdb', 'A hooked guest as a remote target of GDB.'],
      ['kvmi/run', 'A program whose introspection requests are answered, as `kvmi run` does.'],
    ],
  },
  {
    file: 'linux.md',
    title: 'A Linux guest',
    about: '[Look into a Linux guest](../how-to/look-into-a-linux-guest.md) shows how the parts go together.',
    modules: [['kvmi/linux', 'A Linux guest seen from outside, without a profile.']],
  },
  {
    file: 'drivers.md',
    title: 'Drivers',
    about:
      'Ways into a machine. Each gives a `Machine`, which [is described with the contract](machine.md) and not repeated here.',
    modules: [
      ['kvmi/drivers/embedded', 'A machine in this process.'],
      ['kvmi/drivers/qemu', 'Any QEMU.'],
      ['kvmi/drivers/kvm', 'Any VMM on /dev/kvm.'],
      ['kvmi/drivers/snapshot', 'Memory dumps as stopped machines.'],
    ],
  },
  {
    file: 'machine.md',
    title: 'The contract of a driver',
    about: 'For whoever [writes a driver](../how-to/write-a-driver.md), or code that works with any machine.',
    modules: [['kvmi/machine', 'What a driver presents, and parts to make it of.']],
  },
  {
    file: 'host.md',
    title: 'Host side, messages and structures',
    about:
      'For device managers and for peers that are not of this package. [Hook and unhook](hook.md) tells what the host side ' +
      'does, [the protocol](protocol.md) what is sent.',
    modules: [
      ['kvmi/host', 'The introspection subsystem of a machine.'],
      ['kvmi/wire', 'KVMI messages as data.'],
      ['kvmi/abi', 'Structures and numbers of Linux and KVM.'],
    ],
  },
];

/** Entries of package.json that a page describes. */
export const DESCRIBED_MODULES: readonly string[] = PAGES.flatMap(({ modules }) =>
  modules.map(([name]) => name),
);

type Member = ts.ClassElement | ts.TypeElement;

/** The declarations that a module of the package has for TypeScript, from its `exports`. */
function typesOf(module: string): string {
  const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    exports: Record<string, { types: string }>;
  };
  return join(ROOT, exports[module.replace(/^kvmi/, '.')]!.types);
}

/** Whether users are meant to see a member. */
function isPublic(member: Member): boolean {
  const flags = ts.getCombinedModifierFlags(member);
  const hidden = (flags & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0;
  const internal = ts.getJSDocTags(member).some((tag) => tag.tagName.text === 'internal');
  return !hidden && !internal && !(member.name && ts.isPrivateIdentifier(member.name));
}

/** What a class has because of the contracts that it implements: described with those. */
function contractMembers(declaration: ts.ClassDeclaration, checker: ts.TypeChecker): ReadonlySet<string> {
  const clauses = declaration.heritageClauses ?? [];
  const contracts = clauses.filter(({ token }) => token === ts.SyntaxKind.ImplementsKeyword);
  const types = contracts.flatMap((clause) => clause.types.map((type) => checker.getTypeAtLocation(type)));
  return new Set(types.flatMap((type) => type.getProperties().map(({ name }) => name)));
}

/** The members of a class that its description has. */
function ownMembers(declaration: ts.ClassDeclaration, checker: ts.TypeChecker): ts.ClassElement[] {
  const contract = contractMembers(declaration, checker);
  return declaration.members.filter(
    (member) => isPublic(member) && !(member.name && contract.has(member.name.getText())),
  );
}

/** A declaration as text: without what is private, and without the doc comment before it. */
function declarationText(declaration: ts.Declaration, checker: ts.TypeChecker): string {
  const node = ts.isVariableDeclaration(declaration) ? declaration.parent.parent : declaration;
  const text = node.getText();
  if (!ts.isClassDeclaration(node)) return undeclared(text);
  const first = node.members[0];
  const head = first ? text.slice(0, first.getFullStart() - node.getStart()).trimEnd() : text;
  const members = ownMembers(node, checker).map((member) => member.getFullText().replace(/^\n/, ''));
  return undeclared(`${head}\n${members.join('\n')}\n}`);
}

function undeclared(text: string): string {
  return (
    text
      .replace(/^export /, '')
      .replace(/^declare /, '')
      // Types that the compiler has inferred are named with the file that they are in.
      .replaceAll(/import\("[^"]*"\)\./g, '')
      .replaceAll(/^( {4})+/gm, (indent) => ' '.repeat(indent.length / 2))
  );
}

/** The doc comment of a declaration as Markdown, or nothing. */
function commentOf(symbol: ts.Symbol, checker: ts.TypeChecker): string {
  const text = ts.displayPartsToString(symbol.getDocumentationComment(checker));
  const tags = symbol
    .getJsDocTags(checker)
    .filter(({ name }) => name === 'throws' || name === 'returns')
    .map(
      ({ name, text: parts }) =>
        `${name === 'throws' ? 'Throws' : 'Returns'}: ${ts.displayPartsToString(parts)}`,
    );
  const links = /\{@link (\w+)\}/g;
  return [text, ...tags]
    .filter((part) => part !== '')
    .join('\n\n')
    .replaceAll(links, '`$1`');
}

function symbolSection(name: string, symbol: ts.Symbol, checker: ts.TypeChecker): string {
  const code = (symbol.declarations ?? []).map((each) => declarationText(each, checker)).join('\n');
  const comment = commentOf(symbol, checker);
  return `### ${name}\n\n${comment === '' ? '' : `${comment}\n\n`}\`\`\`ts\n${code}\n\`\`\`\n`;
}

/** The pages of the reference by file name, from the declarations that the compiler has written. */
export function sdkPages(): ReadonlyMap<string, string> {
  const pages = new Reference();
  return new Map(PAGES.map((page) => [page.file, pages.page(page)]));
}

/** The name in a reference to a type; undefined for every other node. */
function typeNameOf(node: ts.Node): ts.Node | undefined {
  if (ts.isTypeReferenceNode(node)) return node.typeName;
  if (ts.isExpressionWithTypeArguments(node)) return node.expression;
  return ts.isImportTypeNode(node) ? node.qualifier : undefined;
}

class Reference {
  readonly #program: ts.Program;
  readonly #checker: ts.TypeChecker;
  /** Where each symbol is described. */
  readonly #described = new Map<ts.Symbol, { readonly file: string; readonly name: string }>();

  constructor() {
    this.#program = ts.createProgram(DESCRIBED_MODULES.map(typesOf), {
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
      skipLibCheck: true,
      types: [],
    });
    this.#checker = this.#program.getTypeChecker();
    for (const { file, modules } of PAGES) {
      for (const [module] of modules)
        for (const [name, symbol] of this.#exportsOf(module))
          if (!this.#described.has(symbol)) this.#described.set(symbol, { file, name });
    }
  }

  page({ file, title, about, modules }: Page): string {
    const done = new Set<ts.Symbol>();
    const sections = modules.map(([module, purpose]) => this.#moduleSection(file, module, purpose, done));
    const used = this.#usedSection(file, done);
    return `# ${title}\n\nGenerated from the doc comments in the sources (\`npm run docs\`). ${about}\n\n${[...sections, ...used].join('\n')}`;
  }

  #exportsOf(module: string): [name: string, symbol: ts.Symbol][] {
    const source = this.#program.getSourceFile(typesOf(module))!;
    const exported = this.#checker.getExportsOfModule(this.#checker.getSymbolAtLocation(source)!);
    return exported
      .toSorted((a, b) => a.name.localeCompare(b.name, 'en'))
      .map((each) => [each.name, this.#resolved(each)]);
  }

  #resolved(symbol: ts.Symbol): ts.Symbol {
    return symbol.flags & ts.SymbolFlags.Alias ? this.#checker.getAliasedSymbol(symbol) : symbol;
  }

  #moduleSection(file: string, module: string, purpose: string, done: Set<ts.Symbol>): string {
    const again: string[] = [];
    const fresh: string[] = [];
    for (const [name, symbol] of this.#exportsOf(module)) {
      const place = this.#described.get(symbol)!;
      const isHere = place.file === file && !done.has(symbol);
      if (isHere) fresh.push(symbolSection(name, symbol, this.#checker));
      else again.push(`[${name}](${place.file === file ? '' : place.file}#${place.name.toLowerCase()})`);
      done.add(symbol);
    }
    const repeated = again.length > 0 ? `Also here: ${again.join(', ')}.\n\n` : '';
    return `## ${module}\n\n${purpose}\n\n${repeated}${fresh.join('\n')}`;
  }

  /** Types of the package that what stands on a page refers to and no module exports. */
  #usedSection(file: string, done: ReadonlySet<ts.Symbol>): string[] {
    const found = new Map<ts.Symbol, string>();
    const queue = [...done].filter((symbol) => this.#described.get(symbol)?.file === file);
    for (let symbol = queue.pop(); symbol !== undefined; symbol = queue.pop()) {
      for (const [name, used] of this.#typesIn(symbol)) {
        if (this.#described.has(used)) continue;
        this.#described.set(used, { file, name });
        found.set(used, name);
        queue.push(used);
      }
    }
    if (found.size === 0) return [];
    const sections = [...found]
      .sort(([, a], [, b]) => a.localeCompare(b, 'en'))
      .map(([symbol, name]) => symbolSection(name, symbol, this.#checker));
    return [`## Types that these refer to\n\n${sections.join('\n')}`];
  }

  /** Named types of the package in the visible part of a declaration. */
  #typesIn(symbol: ts.Symbol): Map<string, ts.Symbol> {
    const found = new Map<string, ts.Symbol>();
    const visit = (node: ts.Node): void => {
      const name = typeNameOf(node);
      const target = name && this.#checker.getSymbolAtLocation(name);
      if (target) this.#addType(found, this.#resolved(target));
      ts.forEachChild(node, visit);
    };
    for (const declaration of symbol.declarations ?? []) {
      if (!ts.isClassDeclaration(declaration)) visit(declaration);
      else for (const part of ownMembers(declaration, this.#checker)) visit(part);
    }
    return found;
  }

  #addType(found: Map<string, ts.Symbol>, symbol: ts.Symbol): void {
    const declaration = symbol.declarations?.[0];
    if (declaration === undefined || symbol.flags & ts.SymbolFlags.TypeParameter) return;
    if (declaration.getSourceFile().fileName.startsWith(join(ROOT, 'dist'))) found.set(symbol.name, symbol);
  }
}
