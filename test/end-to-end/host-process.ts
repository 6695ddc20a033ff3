import { openQemu } from '../../src/drivers/qemu/index.ts';
import { serve } from '../../src/host/index.ts';
import { connect } from '../../src/transport/index.ts';

/*
 * A host side of its own: hooks the QEMU behind argv[2] to the tool at argv[3], again and again until it is
 * killed. Prints "serving" for each hook.
 */
const [, , qmp, tool] = process.argv;
const machine = await openQemu({ qmp: qmp! });
const report = (message: string): void => console.error(message);
for (;;) {
  try {
    const channel = await connect(tool!);
    console.log('serving');
    await serve(machine, channel, { log: { info: report, warn: () => {}, error: report } });
  } catch {
    // The tool is not there yet, or not any more.
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
