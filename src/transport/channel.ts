/** What a channel delivers to. Called one at a time, never from inside `write`, but for loopback channels. */
export interface ChannelHandler {
  /** Bytes arrived. They may be kept: the channel does not use them again. */
  data(bytes: Uint8Array): void;
  /**
   * The peer hung up, or the channel was shut down or failed (`error`). Called once, soon after and never from
   * inside `shutdown`; nothing follows.
   */
  close(error?: Error): void;
  /** The peer took what was written: `backlog` fell to 0 after it was not. */
  drain?(): void;
}

/**
 * A connected byte stream: a Unix or TCP socket, a vsock, or the other end of a loopback pair.
 */
export interface Channel {
  /** For log lines: `unix:/run/tool.sock`, `loopback`. */
  readonly peer: string;
  /** Starts delivery. Bytes that arrived before are delivered first. A second call replaces the handler. */
  open(handler: ChannelHandler): void;
  /** Sends bytes, which the caller does not change afterwards. Nothing happens after a close. */
  write(bytes: Uint8Array): void;
  /** Stops delivery, so that a slow receiver slows the sender down. */
  pause(): void;
  resume(): void;
  /** Shuts both directions down, after what was written. Nothing is delivered any more but the close. */
  shutdown(): void;
  /** Bytes written that the peer has not taken yet. */
  readonly backlog: number;
}
