import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { assemble, compile, temporaryFolder } from './kit.ts';

/** What micro.c is told in one byte each. */
const COMMANDS = { hold: 'h', release: 'r', addVcpu: 'a', exec: 'x' } as const;

export interface MicroVmOptions {
  readonly vcpus?: number;
  /** The threads of its vCPUs have a seccomp filter that allows nothing but running a guest. */
  readonly filter?: boolean;
}

let built: { readonly folder: string; readonly program: string; readonly image: string } | undefined;
let started = 0;

function build(): NonNullable<typeof built> {
  if (built) return built;
  const folder = temporaryFolder();
  built = { folder, program: compile('micro', folder), image: assemble('actions', folder) };
  return built;
}

/** A process of micro.c with the guest of actions.S. It is nobody's child, and ends with this one. */
export class MicroVm {
  readonly pid: number;
  /** Resolves when the process has ended. */
  readonly ended: Promise<void>;
  readonly #socket: Socket;

  private constructor(pid: number, socket: Socket) {
    this.pid = pid;
    this.#socket = socket;
    this.ended = new Promise((resolve) => socket.once('close', () => resolve()));
  }

  static async start({ vcpus = 1, filter = false }: MicroVmOptions = {}): Promise<MicroVm> {
    const { folder, program, image } = build();
    const path = join(folder, `control-${started++}`);
    const server = createServer();
    server.listen(path);
    await once(server, 'listening');
    const command = `"$0" "$@" >/dev/null 2>>${folder}/errors &`;
    execFileSync('sh', ['-c', command, program, path, image, String(vcpus), ...(filter ? ['filter'] : [])]);
    const [socket] = (await once(server, 'connection')) as [Socket];
    server.close();
    rmSync(path, { force: true });
    const [hello] = (await once(socket, 'data')) as [Buffer];
    socket.on('error', () => socket.destroy());
    return new MicroVm(Number.parseInt(hello.toString(), 10), socket);
  }

  /** Asks for something; resolves when it is done. */
  async tell(command: keyof typeof COMMANDS): Promise<void> {
    const done = once(this.#socket, 'data');
    this.#socket.write(COMMANDS[command]);
    await Promise.race([
      done,
      this.ended.then(() => Promise.reject(new Error('the device manager has ended'))),
    ]);
  }

  async stop(): Promise<void> {
    this.#socket.end();
    await this.ended;
  }
}
