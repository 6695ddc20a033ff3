import { putU16, putU32, putU64 } from '../../abi/bytes.ts';
import { KVM_XSAVE_SIZE } from '../../abi/x86.ts';
import type { Section } from './device-state.ts';

/** State components (Intel SDM volume 1, "XSAVE-Supported Features"). */
const X87_AND_SSE = 3n;
const AVX = 1n << 2n;
const MPX = 3n << 3n;
const AVX512 = 7n << 5n;
const PKRU = 1n << 9n;

const MXCSR_MASK = 0xffff;

/** Where the components lie in the standard format. */
export const XSAVE_OFFSETS = {
  fcw: 0,
  fsw: 2,
  ftw: 4,
  fop: 6,
  fip: 8,
  fdp: 16,
  mxcsr: 24,
  mxcsrMask: 28,
  st: 32,
  xmm: 160,
  header: 512,
  ymmh: 576,
  bnd: 960,
  bndcsr: 1024,
  opmask: 1088,
  zmmh: 1152,
  hi16Zmm: 1664,
  pkru: 2688,
} as const;

/**
 * Fills `into` in the layout of KVM_GET_XSAVE (standard format) from QEMU's CPU section. TCG numbers the x87
 * registers physically, KVM from the top of the stack as XSAVE does.
 */
export function writeXsave(cpu: Section, tcg: boolean, into: Uint8Array): void {
  into.fill(0, 0, KVM_XSAVE_SIZE);
  writeX87(cpu, tcg, into);
  putU32(into, XSAVE_OFFSETS.mxcsr, cpu.number('mxcsr'));
  putU32(into, XSAVE_OFFSETS.mxcsrMask, MXCSR_MASK);
  let components = X87_AND_SSE;
  const enabled = cpu.get('xcr0');
  copyVectors(cpu, 'xmm', 16, into, XSAVE_OFFSETS.xmm);
  if ((enabled & AVX) !== 0n) {
    components |= AVX;
    copyVectors(cpu, 'ymmh', 16, into, XSAVE_OFFSETS.ymmh);
  }
  if ((enabled & MPX) !== 0n && cpu.has('bnd')) {
    components |= MPX;
    for (let i = 0; i < 8; i++) putU64(into, XSAVE_OFFSETS.bnd + 8 * i, cpu.get('bnd', i));
    putU64(into, XSAVE_OFFSETS.bndcsr, cpu.get('bndcfgu'));
    putU64(into, XSAVE_OFFSETS.bndcsr + 8, cpu.get('bndstatus'));
  }
  if ((enabled & AVX512) !== 0n && cpu.has('opmask')) {
    components |= AVX512;
    for (let i = 0; i < 8; i++) putU64(into, XSAVE_OFFSETS.opmask + 8 * i, cpu.get('opmask', i));
    copyVectors(cpu, 'zmmh', 16, into, XSAVE_OFFSETS.zmmh);
    copyVectors(cpu, 'hi16_zmm', 16, into, XSAVE_OFFSETS.hi16Zmm);
  }
  if ((enabled & PKRU) !== 0n && cpu.has('pkru')) {
    components |= PKRU;
    putU32(into, XSAVE_OFFSETS.pkru, cpu.number('pkru'));
  }
  putU64(into, XSAVE_OFFSETS.header, components);
}

function writeX87(cpu: Section, tcg: boolean, into: Uint8Array): void {
  const fsw = cpu.number('fsw');
  putU16(into, XSAVE_OFFSETS.fcw, cpu.number('fcw'));
  putU16(into, XSAVE_OFFSETS.fsw, fsw);
  into[XSAVE_OFFSETS.ftw] = cpu.number('ftw');
  if (cpu.has('fpop')) {
    putU16(into, XSAVE_OFFSETS.fop, cpu.number('fpop'));
    putU64(into, XSAVE_OFFSETS.fip, cpu.get('fpip'));
    putU64(into, XSAVE_OFFSETS.fdp, cpu.get('fpdp'));
  }
  const top = tcg ? (fsw >> 11) & 7 : 0;
  for (let i = 0; i < 8; i++) {
    const register = (top + i) & 7;
    putU64(into, XSAVE_OFFSETS.st + 16 * i, cpu.get(`st${register}.mantissa`));
    putU16(into, XSAVE_OFFSETS.st + 16 * i + 8, cpu.number(`st${register}.exponent`));
  }
}

function copyVectors(cpu: Section, name: string, count: number, into: Uint8Array, at: number): void {
  const stride = { xmm: 16, ymmh: 16, zmmh: 32, hi16_zmm: 64 }[name]!;
  for (let i = 0; i < count; i++) cpu.copyVector(name, i, into, at + i * stride);
}
