/* Programs for the guest, made of a few bytes of code: a guest needs no compiler, and neither does this host. */

const BASE = 0x400000n;
const HEADERS = 120;

/** A static x86-64 ELF executable that consists of `code`. */
export function elf(code: Uint8Array): Buffer {
  const file = Buffer.alloc(HEADERS + code.length);
  file.write('\x7fELF\x02\x01\x01', 'latin1');
  file.writeUInt16LE(2, 16); // ET_EXEC
  file.writeUInt16LE(62, 18); // EM_X86_64
  file.writeUInt32LE(1, 20);
  file.writeBigUInt64LE(BASE + BigInt(HEADERS), 24);
  file.writeBigUInt64LE(64n, 32);
  file.writeUInt16LE(64, 52);
  file.writeUInt16LE(56, 54);
  file.writeUInt16LE(1, 56);
  file.writeUInt32LE(1, 64); // PT_LOAD
  file.writeUInt32LE(7, 68);
  file.writeBigUInt64LE(BASE, 80);
  file.writeBigUInt64LE(BASE, 88);
  file.writeBigUInt64LE(BigInt(file.length), 96);
  file.writeBigUInt64LE(BigInt(file.length), 104);
  file.writeBigUInt64LE(4096n, 112);
  file.set(code, HEADERS);
  return file;
}

function u32(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}

const EXIT = [0xb8, ...u32(60), 0x31, 0xff, 0x0f, 0x05];

/** `count` times `body`, then exit(0). `body` must keep ebx. */
function repeated(count: number, body: readonly number[]): Buffer {
  const back = -(body.length + 4);
  return elf(Uint8Array.from([0xbb, ...u32(count), ...body, 0xff, 0xcb, 0x75, back & 0xff, ...EXIT]));
}

/** Executes int3 `count` times: without a tool that skips it, the first one ends the program with SIGTRAP. */
export function int3Program(count: number): Buffer {
  return repeated(count, [0xcc]);
}

/** Makes the system call `number` `count` times. */
export function syscallProgram(number: number, count: number): Buffer {
  return repeated(count, [0xb8, ...u32(number), 0x0f, 0x05]);
}

const SIGTRAP = 5;
const SA_RESTORER_AND_SIGINFO = 0x04000004;

/**
 * Handles its own SIGTRAP `count` times, as a debugged program does, and exits with 0 if the handler ran exactly that
 * often: int3 that the guest means for itself.
 */
export function ownInt3Program(count: number): Buffer {
  const u64 = (value: bigint) => [...u32(Number(value & 0xffffffffn)), ...u32(Number(value >> 32n))];
  const push = (value: bigint) => [0x48, 0xb8, ...u64(value), 0x50]; // mov rax, value; push rax
  const handler = [0xff, 0x04, 0x25, ...u32(Number(COUNTER)), 0xc3]; // inc dword [COUNTER]; ret
  const restorer = [0x48, 0xc7, 0xc0, ...u32(15), 0x0f, 0x05]; // rt_sigreturn
  // First a jump over the two.
  const handlerAt = BASE + BigInt(HEADERS + 2);
  const restorerAt = handlerAt + BigInt(handler.length);
  const code = [
    0xeb,
    handler.length + restorer.length,
    ...handler,
    ...restorer,
    ...push(0n), // sa_mask
    ...push(restorerAt),
    ...push(BigInt(SA_RESTORER_AND_SIGINFO)),
    ...push(handlerAt),
    ...[0xb8, ...u32(13), 0xbf, ...u32(SIGTRAP)], // rt_sigaction(SIGTRAP,
    ...[0x48, 0x89, 0xe6, 0x31, 0xd2, 0x41, 0xba, ...u32(8), 0x0f, 0x05], // rsp, NULL, 8)
    ...[0xbb, ...u32(count)],
    ...[0xcc, 0xff, 0xcb, 0x75, 0xfb],
    ...[0x8b, 0x3c, 0x25, ...u32(Number(COUNTER))], // mov edi, [COUNTER]
    ...[0x81, 0xef, ...u32(count)], // sub edi, count
    ...[0xb8, ...u32(60), 0x0f, 0x05],
  ];
  return elf(Uint8Array.from(code));
}

/** Within the page that the program is mapped to, beyond its end. */
const COUNTER = BASE + 0xff0n;
