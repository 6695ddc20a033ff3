export { type Address, formatAddress, parseAddress } from './address.ts';
export type { Channel, ChannelHandler } from './channel.ts';
export { loopback } from './loopback.ts';
export { type ConnectOptions, connect, type Listener, listen } from './net.ts';
export { PrefixedChannel } from './prefixed.ts';
export { isPrivateSocket } from './private-socket.ts';
export { ChannelWrapper } from './wrapper.ts';
