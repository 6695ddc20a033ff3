import { sockFilter } from '../abi/kvm.ts';
import { AUDIT_ARCH_X86_64, SECCOMP, SYS } from '../abi/linux.ts';

/* Opcodes of classic BPF and offsets in struct seccomp_data. */
const LOAD_WORD = 0x20;
const JUMP_IF_EQUAL = 0x15;
const RETURN = 0x06;
const NR = 0;
const ARCH = 4;
/** Instructions before the two at the end, without one for each request and capability. */
const FIXED_INSTRUCTIONS = 7;
const argument = (index: number): number => 16 + 8 * index;

/**
 * A filter that hands ioctl(2) with one of `requests` to the listener, and KVM_CHECK_EXTENSION
 * (`checkExtension`) of one of `capabilities`; everything else is allowed without leaving the kernel.
 */
export function notificationFilter(
  requests: readonly number[],
  checkExtension: number,
  capabilities: readonly number[],
): Uint8Array {
  const allow = FIXED_INSTRUCTIONS + requests.length + capabilities.length;
  const notify = allow + 1;
  const program: [number, number, number, number][] = [];
  const at = (target: number): number => target - program.length - 1;
  const equal = (value: number, ifSo: number, otherwise: number): void => {
    program.push([JUMP_IF_EQUAL, at(ifSo), at(otherwise), value]);
  };
  const load = (offset: number): void => {
    program.push([LOAD_WORD, 0, 0, offset]);
  };
  load(ARCH);
  equal(AUDIT_ARCH_X86_64, program.length + 1, allow);
  load(NR);
  equal(SYS.ioctl, program.length + 1, allow);
  load(argument(1));
  for (const request of requests) equal(request, notify, program.length + 1);
  equal(checkExtension, program.length + 1, allow);
  load(argument(2));
  for (const capability of capabilities) equal(capability, notify, program.length + 1);
  program.push([RETURN, 0, 0, SECCOMP.RET_ALLOW]);
  program.push([RETURN, 0, 0, SECCOMP.RET_USER_NOTIF]);
  return encode(program);
}

function encode(program: readonly (readonly [number, number, number, number])[]): Uint8Array {
  const bytes = new Uint8Array(program.length * sockFilter.size);
  program.forEach(([code, jt, jf, k], index) => {
    sockFilter.write(bytes, index * sockFilter.size, { code, jt, jf, k });
  });
  return bytes;
}
