import { getU16 } from '../abi/bytes.ts';
import type { Gva } from '../machine/index.ts';
import { Bounds, isKernelPointer } from '../reading/bounds.ts';
import { textOf } from '../reading/text.ts';
import type { Walk } from '../reading/walk.ts';
import { formatAddress } from './address-text.ts';
import { descriptorsOf } from './files.ts';
import { chain, listOf } from './list.ts';
import type { Obj, Session } from './session.ts';
import { taskList } from './tasks.ts';

/** A TCP, UDP or Unix socket. */
export interface Socket {
  readonly protocol: 'tcp' | 'tcp6' | 'udp' | 'udp6' | 'unix';
  readonly localAddress: string;
  readonly localPort: number;
  readonly remoteAddress: string;
  readonly remotePort: number;
  readonly state: string;
  /** Unix sockets: where it is bound; `@` stands for the abstract namespace. */
  readonly path: string;
  readonly uid: number;
  readonly inode: number;
  /** The process that has it open; 0 when there is none (or the kernel itself). */
  readonly pid: number;
  readonly comm: string;
  /** Number of the network namespace. */
  readonly namespace: number;
  /** Of its struct sock. */
  readonly address: Gva;
}

const AF_INET6 = 10;
/** include/net/tcp_states.h; Unix sockets use some of them. */
const STATES = [
  '',
  'ESTABLISHED',
  'SYN_SENT',
  'SYN_RECV',
  'FIN_WAIT1',
  'FIN_WAIT2',
  'TIME_WAIT',
  'CLOSE',
  'CLOSE_WAIT',
  'LAST_ACK',
  'LISTEN',
  'CLOSING',
  'SYN_RECV',
];
const TIME_WAIT = 6;
const NEW_SYN_RECV = 12;
const UNIX_STATES: Readonly<Record<number, string>> = { 1: 'CONNECTED', 10: 'LISTEN', 7: 'UNCONNECTED' };
const MAX_BUCKETS = 1 << 20;
/** Of a table of Unix sockets (UNIX_HASH_SIZE): each network namespace has one since 6.0; before, there was one for all. */
const UNIX_BUCKETS = 512;

interface Owner {
  readonly pid: number;
  readonly comm: string;
}

export function* sockets(session: Session): Walk<Socket[]> {
  const nets = yield* namespaces(session);
  const owners = yield* ownersOf(session);
  const rows: Socket[] = [];
  const seen = new Set<Gva>();
  const add = function* (nodes: readonly Gva[], row: (sock: Gva) => Walk<Socket>): Walk<void> {
    for (const sock of session.timely(nodes)) {
      if (seen.has(sock)) continue;
      seen.add(sock);
      const socket = yield* session.attempt('a socket', row(sock), undefined);
      if (socket !== undefined) rows.push(socket);
    }
  };
  const inet = (protocol: 'tcp' | 'udp') => (sock: Gva) => inetRow(session, sock, protocol, owners);
  yield* add(yield* session.attempt('TCP sockets', tcpSocks(session, nets), []), inet('tcp'));
  yield* add(yield* session.attempt('UDP sockets', udpSocks(session, nets), []), inet('udp'));
  const unix = yield* session.attempt('Unix sockets', unixSocks(session, nets), []);
  yield* add(unix, (sock) => unixRow(session, sock, owners));
  return rows;
}

function* namespaces(session: Session): Walk<Obj<'net'>[]> {
  const head = session.kernel.symbols.address('net_namespace_list');
  if (head === undefined) return [];
  return yield* listOf(session, head, 'net', 'list', 'the list of network namespaces');
}

/** Which process has which socket open: of several, the first. */
function* ownersOf(session: Session): Walk<Map<Gva, Owner>> {
  const owners = new Map<Gva, Owner>();
  const socketOperations = session.kernel.symbols.address('socket_file_ops');
  for (const task of session.timely(yield* taskList(session))) {
    const owner = { pid: task.number('tgid'), comm: task.text('comm') };
    const find = function* (): Walk<undefined> {
      for (const { file } of yield* descriptorsOf(session, task)) {
        const open = yield* session.object('file', file);
        if (open.pointer('operations') !== socketOperations) continue;
        const { sock } = yield* socketOf(session, open.pointer('private'));
        if (!owners.has(sock)) owners.set(sock, owner);
      }
    };
    yield* session.attempt(`sockets of process ${owner.pid}`, find(), undefined);
  }
  return owners;
}

function* socketOf(session: Session, gva: Gva): Walk<{ sock: Gva }> {
  return { sock: (yield* session.object('socket', gva)).pointer('sock') };
}

/** Nodes of a hash table of `count` buckets, each `stride` bytes long with the first node at `offset`. */
function* hashed(
  session: Session,
  table: { base: Gva; count: number; stride: number; offset: number },
  what: string,
): Walk<Gva[]> {
  const { base, stride, offset } = table;
  const bounds = new Bounds(session, what);
  if (table.count > MAX_BUCKETS) session.note(`${what}: ${table.count} buckets cut at ${MAX_BUCKETS}`);
  const count = Math.min(table.count, MAX_BUCKETS);
  const nodes: Gva[] = [];
  for (let i = 0; i < count; i++) {
    if ((i & 1023) === 0 && !session.hasTime()) break;
    const first = yield* session.space.u64(base + BigInt(i * stride + offset));
    if (first === 0n || (first & 1n) === 1n) continue;
    for (const node of yield* chain(session, first, bounds, what)) nodes.push(node);
  }
  return nodes;
}

function* tcpSocks(session: Session, nets: readonly Obj<'net'>[]): Walk<Gva[]> {
  const { layouts, symbols } = session.kernel;
  const tables = new Set<Gva>();
  const global = symbols.address('tcp_hashinfo');
  if (global !== undefined) tables.add(global);
  for (const net of nets) if (net.has('tcpTables')) tables.add(net.pointer('tcpTables'));
  const offset = BigInt(layouts.field('sock', 'node').offset);
  const socks: Gva[] = [];
  for (const address of session.timely(tables)) {
    if (!isKernelPointer(address)) continue;
    const table = yield* session.object('tcpTables', address);
    const connections = hashed(session, establishedTable(session, table), 'the table of TCP connections');
    for (const node of yield* connections) socks.push(node - offset);
    const listeners = hashed(session, listeningTable(session, table), 'the table of TCP listeners');
    for (const node of yield* listeners) socks.push(node - offset);
  }
  return socks;
}

function establishedTable(session: Session, table: Obj<'tcpTables'>) {
  const { layouts } = session.kernel;
  return {
    base: table.pointer('established'),
    count: table.number('establishedMask') + 1,
    stride: layouts.get('establishedBucket').size,
    offset: layouts.field('establishedBucket', 'first').offset,
  };
}

/** An array in the structure until 5.19; since then all listeners are in the second table. */
function listeningTable(session: Session, table: Obj<'tcpTables'>) {
  const { layouts } = session.kernel;
  const stride = layouts.get('listeningBucket').size;
  const { offset } = layouts.field('listeningBucket', 'first');
  if (table.has('listening')) {
    const { size } = layouts.field('tcpTables', 'listening');
    return { base: table.address('listening'), count: Math.floor(size / stride), stride, offset };
  }
  const count = table.number('listening2Mask') + 1;
  return { base: table.pointer('listening2'), count, stride, offset };
}

function* udpSocks(session: Session, nets: readonly Obj<'net'>[]): Walk<Gva[]> {
  const { layouts, symbols } = session.kernel;
  const tables = new Set<Gva>();
  const global = symbols.address('udp_table');
  if (global !== undefined) tables.add(global);
  for (const net of nets) if (net.has('udpTable')) tables.add(net.pointer('udpTable'));
  const offset = BigInt(layouts.field('sock', 'node').offset);
  const socks: Gva[] = [];
  for (const address of session.timely(tables)) {
    if (!isKernelPointer(address)) continue;
    const table = yield* session.object('udpTable', address);
    const buckets = {
      base: table.pointer('hash'),
      count: table.number('mask') + 1,
      stride: layouts.get('udpBucket').size,
      offset: layouts.field('udpBucket', 'first').offset,
    };
    for (const node of yield* hashed(session, buckets, 'the table of UDP sockets')) socks.push(node - offset);
  }
  return socks;
}

function* unixSocks(session: Session, nets: readonly Obj<'net'>[]): Walk<Gva[]> {
  const { layouts, symbols } = session.kernel;
  const offset = BigInt(layouts.field('sock', 'node').offset);
  const what = 'the table of Unix sockets';
  const socks: Gva[] = [];
  const add = function* (base: Gva, count: number): Walk<void> {
    const nodes = yield* hashed(session, { base, count, stride: 8, offset: 0 }, what);
    for (const node of nodes) socks.push(node - offset);
  };
  const global = symbols.address('unix_socket_table');
  if (global !== undefined) yield* add(global, UNIX_BUCKETS);
  else
    for (const net of nets) if (net.has('unixBuckets')) yield* add(net.pointer('unixBuckets'), UNIX_BUCKETS);
  return socks;
}

function* inetRow(
  session: Session,
  gva: Gva,
  protocol: 'tcp' | 'udp',
  owners: ReadonlyMap<Gva, Owner>,
): Walk<Socket> {
  const common = yield* session.object('sockCommon', gva);
  const state = common.number('state');
  const isV6 = common.number('family') === AF_INET6;
  const isWhole = protocol === 'udp' || (state !== TIME_WAIT && state !== NEW_SYN_RECV);
  const local = isV6 && common.has('localAddress6') ? 'localAddress6' : 'localAddress';
  const remote = isV6 && common.has('remoteAddress6') ? 'remoteAddress6' : 'remoteAddress';
  const port = common.bytes('remotePort');
  return {
    protocol: isV6 ? `${protocol}6` : protocol,
    localAddress: formatAddress(common.bytes(local)),
    localPort: common.number('localPort'),
    remoteAddress: formatAddress(common.bytes(remote)),
    remotePort: ((getU16(port, 0) & 0xff) << 8) | (getU16(port, 0) >> 8),
    state: protocol === 'udp' && state !== 1 ? 'UNCONNECTED' : (STATES[state] ?? String(state)),
    path: '',
    ...(isWhole ? yield* identity(session, gva, owners) : { uid: 0, inode: 0, pid: 0, comm: '' }),
    namespace: yield* namespaceOf(session, common.pointer('net')),
    address: gva,
  };
}

type Identity = Pick<Socket, 'uid' | 'inode' | 'pid' | 'comm'>;

function* identity(session: Session, gva: Gva, owners: ReadonlyMap<Gva, Owner>): Walk<Identity> {
  const sock = yield* session.object('sock', gva);
  const socket = sock.pointer('socket');
  const owner = owners.get(gva) ?? { pid: 0, comm: '' };
  const uid = sock.has('uid') ? sock.number('uid') : 0;
  if (socket === 0n) return { uid, inode: 0, ...owner };
  const { layouts } = session.kernel;
  const distance =
    layouts.field('socketInode', 'inode').offset - layouts.field('socketInode', 'socket').offset;
  const inode = yield* session.object('inode', socket + BigInt(distance));
  return { uid, inode: inode.number('number'), ...owner };
}

function* namespaceOf(session: Session, net: Gva): Walk<number> {
  if (net === 0n) return 0;
  return (
    (yield* session.attempt('a network namespace', session.object('net', net), undefined))?.number('inum') ??
    0
  );
}

/** Where sun_path starts in a sockaddr_un. */
const FAMILY_SIZE = 2;
const MAX_UNIX_ADDRESS = 110;

function* unixRow(session: Session, gva: Gva, owners: ReadonlyMap<Gva, Owner>): Walk<Socket> {
  const sock = yield* session.object('sock', gva);
  const unix = yield* session.object('unixSock', gva);
  const state = sock.number('state');
  return {
    protocol: 'unix',
    localAddress: '',
    localPort: 0,
    remoteAddress: '',
    remotePort: 0,
    state: UNIX_STATES[state] ?? String(state),
    path: yield* unixPath(session, unix.pointer('address')),
    ...(yield* identity(session, gva, owners)),
    namespace: yield* namespaceOf(session, sock.pointer('net')),
    address: gva,
  };
}

function* unixPath(session: Session, address: Gva): Walk<string> {
  if (address === 0n) return '';
  const bound = yield* session.object('unixAddress', address);
  const length = Math.min(MAX_UNIX_ADDRESS, bound.number('length')) - FAMILY_SIZE;
  if (length <= 0) return '';
  const bytes = yield* session.space.read(bound.address('path'), length);
  if (bytes[0] !== 0) return textOf(bytes);
  // An abstract name may hold any byte; /proc/net/unix shows each zero byte as @.
  return Buffer.from(bytes).toString('latin1').replaceAll('\0', '@');
}
