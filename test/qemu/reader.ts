import { SharedQmp } from '../../src/drivers/qemu/sharing/shared-qmp.ts';

/* Asks the QEMU at the QMP socket argv[2] for its status, again and again. Prints "reading" when it has begun. */
const qmp = await SharedQmp.connect(process.argv[2]!);
await qmp.execute('query-status');
console.log('reading');
for (;;) await qmp.execute('query-status');
