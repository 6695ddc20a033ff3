import { messageOf } from '../../src/error.ts';

const wantsLinux = process.argv.includes('--linux');
try {
  if (wantsLinux) await (await import('./linux.ts')).linuxTour();
  else await (await import('./embedded.ts')).embeddedTour();
} catch (error) {
  console.error(`kvmi: ${messageOf(error)}`);
  process.exit(1);
}
