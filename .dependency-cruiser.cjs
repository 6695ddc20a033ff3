/**
 * The import rule, as docs/architecture.md draws it; scripts/circles.mjs looks for circles. `awaitable.ts`, `error.ts` and
 * `error-codes.ts` are leaves that every room may import; `introspect.ts` and `index.ts` put rooms together, `cli` is on top.
 */
const LEAVES = '^src/(awaitable|error|error-codes)\\.ts$';

/** Rooms that know nothing of machines: what any of the others may import. */
const TOOLBOX = ['abi', 'system', 'btf', 'rsp', 'x86'];

/** What each room may import besides itself and the leaves. */
const ROOMS = {
  abi: [],
  input: [],
  system: ['abi'],
  btf: ['abi'],
  rsp: ['abi'],
  x86: ['abi'],
  transport: [],
  wire: ['abi'],
  machine: ['abi'],
  rows: ['input'],
  reading: ['abi', 'btf', 'machine'],
  host: ['abi', 'wire', 'machine', 'transport'],
  tool: ['abi', 'x86', 'wire', 'machine', 'transport'],
  gdb: ['abi', 'rsp', 'machine', 'transport', 'tool'],
  linux: ['abi', 'btf', 'x86', 'machine', 'reading', 'rows'],
  'drivers/embedded': ['abi', 'machine'],
  'drivers/qemu': [...TOOLBOX, 'machine'],
  'drivers/snapshot': [...TOOLBOX, 'machine'],
  'drivers/kvm': [...TOOLBOX, 'machine'],
  run: [...TOOLBOX, 'wire', 'machine', 'transport', 'host', 'drivers/kvm'],
  targets: ['input', 'rows', 'machine', 'linux', 'drivers'],
};

module.exports = {
  forbidden: [
    ...Object.entries(ROOMS).map(([room, allowed]) => ({
      name: `room-${room}`,
      severity: 'error',
      comment: `${room}/ imports only ${['itself', ...allowed].join(', ')}`,
      from: { path: `^src/${room}/`, pathNot: '\\.test\\.ts$' },
      to: {
        path: '^src/',
        pathNot: [LEAVES, ...[room, ...allowed].map((name) => `^src/${name}/`)],
      },
    })),
    {
      name: 'leaves',
      severity: 'error',
      from: { path: LEAVES, pathNot: '\\.test\\.ts$' },
      to: { path: '^src/', pathNot: [LEAVES] },
    },
    {
      name: 'no-vm-in-fast-tests',
      severity: 'error',
      comment: '`npm run test:fast` runs the tests beside the sources: what needs a VM is below test/',
      from: { path: '^src/.*\\.test\\.ts$' },
      to: {
        path: '^test/(kvm|qemu|linux|end-to-end)/|^test/kit/(linux-guest|debian-kernel|libvirt|initramfs)\\.ts$',
        reachable: true,
      },
    },
    {
      name: 'no-test-code',
      severity: 'error',
      from: { path: '^src/', pathNot: '\\.test\\.ts$' },
      to: { path: '(^test/|^bench/|\\.test\\.ts$)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { extensions: ['.ts', '.js'], conditionNames: ['import', 'node', 'default'] },
  },
};
