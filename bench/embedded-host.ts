import { createEmbeddedMachine } from '../src/drivers/embedded/index.ts';
import { serve } from '../src/host/index.ts';
import { connect } from '../src/transport/index.ts';

/** A host side of its own: hooks an idle embedded machine to the tool at argv[2]. Prints "serving". */
const machine = createEmbeddedMachine({ bootArgument: 1 });
machine.start();
const channel = await connect(process.argv[2]!);
console.log('serving');
await serve(machine, channel);
await machine.close();
