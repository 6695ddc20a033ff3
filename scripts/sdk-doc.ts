import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const ROOT = join(import.meta.dirname, '..', '..');
/** Modules of the package that users import, in the order of the page, and what they are for. */
const MODULES: readonly (readonly [name: string, about: string])[] = [
  ['kvmi', 'What most tools need.'],
  ['kvmi/tool', 'The whole SDK for introspection tools.'],
  ['kvmi/linux', 'A Linux guest seen from outside, without a profile.'],
  ['kvmi/rows', 'Answers as tables, JSON and CSV, as the commands print them.'],
  ['kvmi/drivers/embedded', 'A machine in this process.'],
  ['kvmi/drivers/qemu', 'Any QEMU.'],
  ['kvmi/drivers/kvm', 'Any VMM on /dev/kvm.'],
  ['kvmi/drivers/snapshot', 'Memory dumps as stopped machines.'],
];

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

/** A declaration as text: without what is private, and without the doc comment before it. */
function declarationText(declaration: ts.Declaration): string {
  const node = ts.isVariableDeclaration(declaration) ? declaration.parent.parent : declaration;
  const text = node.getText();
  if (!ts.isClassDeclaration(node)) return undeclared(text);
  const first = node.members[0];
  const head = first ? text.slice(0, first.getFullStart() - node.getStart()).trimEnd() : text;
  const members = node.members.filter(isPublic).map((member) => member.getFullText().replace(/^\n/, ''));
  return undeclared(`${head}\n${members.join('\n')}\n}`);
}

function undeclared(text: string): string {
  return text
    .replace(/^export /, '')
    .replace(/^declare /, '')
    .replaceAll(/^( {4})+/gm, (indent) => ' '.repeat(indent.length / 2));
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
  const code = (symbol.declarations ?? []).map(declarationText).join('\n');
  const comment = commentOf(symbol, checker);
  return `### ${name}\n\n${comment === '' ? '' : `${comment}\n\n`}\`\`\`ts\n${code}\n\`\`\`\n`;
}

/** docs/reference/sdk.md, from the declarations that the compiler has written. */
export function sdkPage(): string {
  const files = MODULES.map(([module]) => typesOf(module));
  const program = ts.createProgram(files, {
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    skipLibCheck: true,
    types: [],
  });
  const checker = program.getTypeChecker();
  const described = new Map<ts.Symbol, string>();
  const sections = MODULES.map(([module, about], index) => {
    const file = program.getSourceFile(files[index]!)!;
    const exported = checker.getExportsOfModule(checker.getSymbolAtLocation(file)!);
    const again: string[] = [];
    const fresh: string[] = [];
    for (const each of exported.toSorted((a, b) => a.name.localeCompare(b.name, 'en'))) {
      const symbol = each.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(each) : each;
      if (described.has(symbol)) again.push(`[${each.name}](#${each.name.toLowerCase()})`);
      else fresh.push(symbolSection(each.name, symbol, checker));
      described.set(symbol, module);
    }
    const repeated = again.length > 0 ? `Also here: ${again.join(', ')}.\n\n` : '';
    return `## ${module}\n\n${about}\n\n${repeated}${fresh.join('\n')}`;
  });
  return `# SDK

Generated from the doc comments in the sources (\`npm run docs\`). [Write a tool](../how-to/write-a-tool.md) and
[Look into a Linux guest](../how-to/look-into-a-linux-guest.md) show how the parts go together.

${sections.join('\n')}`;
}
