export { type Address, formatAddress, parseAddress } from './address.ts';
export type * from './channel.ts';
export { loopback } from './loopback.ts';
export { type ConnectOptions, connect, type Listener, listen } from './net.ts';
export * from './prefixed.ts';
export { ChannelWrapper } from './wrapper.ts';
