export * from './errno.ts';
export * from './ioctl.ts';
export * from './kvm.ts';
export * from './linux.ts';
export * from './state.ts';
export * from './struct.ts';
export * from './x86.ts';
