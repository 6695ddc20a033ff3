import { messageOf } from '../../src/error.ts';

try {
  if (process.argv.includes('--linux')) await (await import('./linux.ts')).linuxTour();
  else await (await import('./embedded.ts')).embeddedTour();
} catch (error) {
  console.error(`kvmi: ${messageOf(error)}`);
  process.exit(1);
}
