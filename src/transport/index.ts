export type * from './channel.ts';
export * from './prefixed.ts';
