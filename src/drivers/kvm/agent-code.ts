/** The machine code of agent.S, which says what it does. */
export const AGENT_CODE: Uint8Array = Buffer.from(
  [
    '488d9320010000be9bae48408b7b20b8100000000f0531d2be80ae00008b7b20b8100000000f05488943084885c0755c',
    '488b4b188b490883f93f7750488b4310480fa3c87346488d93b8010000be88ae08c08b7b20b8100000000f05c7030000',
    '0000ff43048b7b288b7324ba17000000b8ea0000000f058b0383f801749883f8020f8479ffffffe99c000000488d9368',
    '010000be9bae48408b7b20b8100000000f05c70300000000ff43048b7b288b7324ba17000000b8ea0000000f058b0383',
    'f8010f844effffff83f8020f842fffffff488b430848898390000000488383c000000002eb5e4c8da300040000448b6b',
    '2c498b0424498b7c2408498b742410498b5424184d8b5424204d8b4424284d8b4c24300f0549894424384983c44041ff',
    'cd75cee934ffffff837b20007816488d9368010000be9bae48408b7b20b8100000000f05bf02000000488d733031d241',
    'ba08000000b80e0000000f054c8b7b404c8b73484c8b6b504c8b6358488b6b604c8b5b704c8b53784c8b8b800000004c',
    '8b8388000000488b8390000000488b8b98000000488b93a0000000488bb3a8000000488bbbb0000000488da3c0000000',
    '488b5b6848cf',
  ].join(''),
  'hex',
);

/** Offsets of its labels. */
export const AGENT_ENTRY = { run: 0x00, call: 0xe6 } as const;

/** Offsets in a slot, as in agent.S. */
export const SLOT = {
  command: 0,
  posted: 4,
  result: 8,
  exitMask: 16,
  runPage: 24,
  vcpuFd: 32,
  tid: 36,
  pid: 40,
  count: 44,
  signalMask: 48,
  regs: 64,
  debugOn: 288,
  debugOff: 360,
  msrs: 440,
  calls: 1024,
} as const;

/** Values of `command`. */
export const COMMAND = { none: 0, again: 1, run: 2 } as const;
/** Entries of the table of calls, 64 bytes each: number, six arguments, result. */
export const CALL_LIMIT = 32;
export const CALL_SIZE = 64;
