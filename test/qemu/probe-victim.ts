import { openQemu } from '../../src/drivers/qemu/index.ts';
import { introspect } from '../../src/introspect.ts';

/*
 * A tool that is to be killed: hooks the VM at argv[2], has a probe at the address argv[3], and says "hit" at each hit.
 */
const [, , qmp, address] = process.argv;
const guest = await introspect(await openQemu({ qmp: qmp! }));
const { kind } = await guest.probes.at(BigInt(address!), () => console.log('hit'));
console.log(kind);
