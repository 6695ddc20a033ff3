/**
 * The import rule: abi ← wire ← host, tool; abi ← machine ← host, drivers, linux; cli on top.
 * `awaitable.ts` and `error.ts` are leaves that every room may import; `introspect.ts` and `index.ts`
 * put rooms together.
 */
const LEAVES = '^src/(awaitable|error)\\.ts$';

/** What each room may import besides itself and the leaves. */
const ROOMS = {
  abi: [],
  transport: [],
  wire: ['abi'],
  machine: ['abi'],
  host: ['abi', 'wire', 'machine', 'transport'],
  tool: ['abi', 'wire', 'machine', 'transport'],
  gdb: ['abi', 'machine', 'transport', 'tool'],
  linux: ['abi', 'machine'],
  'drivers/embedded': ['abi', 'machine'],
  'drivers/qemu': ['abi', 'machine'],
  'drivers/snapshot': ['abi', 'machine'],
  'drivers/kvm': ['abi', 'wire', 'machine', 'transport', 'host'],
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
      name: 'no-cycles',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
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
