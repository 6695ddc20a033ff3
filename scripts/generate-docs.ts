import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cliPage, errorsPage } from './cli-doc.ts';
import { protocolPage } from './protocol-doc.ts';
import { sdkPages } from './sdk-doc.ts';

const reference = join(import.meta.dirname, '..', '..', 'docs', 'reference');
writeFileSync(join(reference, 'protocol.md'), protocolPage());
writeFileSync(join(reference, 'cli.md'), await cliPage());
writeFileSync(join(reference, 'errors.md'), errorsPage());
for (const [file, text] of sdkPages()) writeFileSync(join(reference, file), text);
