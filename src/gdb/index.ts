export { type GdbServer, type GdbServerOptions, listenGdb } from './server.ts';
export { type SessionOptions, serveGdb } from './session.ts';
