import { messageOf } from '../../src/error.ts';
import { linuxTour } from './linux.ts';

try {
  await linuxTour();
} catch (error) {
  console.error(`kvmi: ${messageOf(error)}`);
  process.exit(1);
}
