import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { protocolPage } from './protocol-doc.ts';

const root = join(import.meta.dirname, '..', '..');
writeFileSync(join(root, 'docs', 'reference', 'protocol.md'), protocolPage());
