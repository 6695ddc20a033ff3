import { setImmediate as turn } from 'node:timers/promises';
import { getU32, getU64 } from '../../src/abi/bytes.ts';
import {
  createEmbeddedMachine,
  kernelAddress,
  kernelNumber,
  kernelSymbol,
  MiniKernel,
} from '../../src/drivers/embedded/index.ts';
import { type Guest, introspect } from '../../src/index.ts';
import { hex, Narrator } from './narrator.ts';

const MSR_LSTAR = 0xc0000082;
const CR4_OSXSAVE = 1n << 18n;
const UNDEFINED_INSTRUCTION = 6;
const READ_AND_EXECUTE = 5;
const READ_WRITE_EXECUTE = 7;

/** A guest that runs on the event loop, and can be asked to do things. */
class Player {
  readonly machine = createEmbeddedMachine({ name: 'demo' });
  readonly kernel = new MiniKernel(this.machine);

  async start(): Promise<void> {
    this.machine.start();
    await this.act('nop');
  }

  async act(action: string, arg0 = 0n, arg1 = 0n): Promise<bigint> {
    const before = this.kernel.done();
    this.kernel.post(action, arg0, arg1);
    while (this.kernel.done() === before) await turn();
    return this.kernel.result();
  }

  get ticks(): bigint {
    return this.kernel.read('ticks');
  }
}

/** The story on the machine that lives in this process: no root, no QEMU, no network. */
export async function embeddedTour(): Promise<void> {
  const story = new Narrator();
  story.title('kvmi: a virtual machine, seen and steered from outside');
  story.note('the machine is an x86-64 interpreter in this process, with a small kernel in it');
  const player = new Player();
  await player.start();

  story.step('Hook', "const guest = await introspect(createEmbeddedMachine({ name: 'demo' }));");
  const guest = await introspect(player.machine);
  story.see('name', guest.name);
  story.see('vCPUs', guest.vcpus.length);

  await look(story, guest);
  await breakpoint(story, guest, player);
  await singleStep(story, guest);
  await guardPage(story, guest, player);
  await changeWrites(story, guest, player);
  await inject(story, guest, player);
  await unhook(story, guest, player);
  story.end();
}

async function look(story: Narrator, guest: Guest): Promise<void> {
  const vcpu = guest.vcpus[0]!;
  story.step('Look at registers', 'const registers = await guest.vcpus[0].registers([MSR_LSTAR]);');
  const registers = await vcpu.registers([MSR_LSTAR]);
  story.see('rip, rsp', `${hex(registers.rip)}  ${hex(registers.rsp)}`);
  story.see('cr3, LSTAR', `${hex(registers.cr3)}  ${hex(registers.msr(MSR_LSTAR)!)}`);
  story.step('Read memory', 'await guest.vcpus[0].memory.readBytes(banner, 64);');
  const banner = await vcpu.memory.readBytes(kernelSymbol('banner'), 64);
  story.see('the kernel says', text(banner));
  story.step('Walk its task list', 'const task = await guest.vcpus[0].memory.readBytes(address, 128);');
  for (const { pid, ppid, comm } of await tasks(guest)) {
    story.see(`pid ${pid}`, `${comm} (parent ${ppid})`);
  }
}

async function breakpoint(story: Narrator, guest: Guest, player: Player): Promise<void> {
  story.step(
    'Break where the kernel handles a system call',
    'const breakpoint = await guest.breakpoints.set(syscallEntry, (event) => {\n' +
      '  console.log(event.registers.rax);\n});',
  );
  const seen: bigint[] = [];
  const set = await guest.breakpoints.set(kernelSymbol('syscall_entry'), ({ registers }) => {
    seen.push(registers.rax);
  });
  while (seen.length < 5) await turn();
  await set.remove();
  story.see('system calls seen', seen.slice(0, 5).join(', '));
  const hits = set.hits;
  await player.act('nop');
  story.proof('none is seen after it is removed', set.hits === hits);
}

async function singleStep(story: Narrator, guest: Guest): Promise<void> {
  story.step('Single-step', 'await guest.singlestep(guest.vcpus[0], (event) => console.log(event.rip));');
  const path: bigint[] = [];
  await guest.singlestep(guest.vcpus[0]!, ({ rip }) => path.push(rip) < 6);
  for (const rip of path) story.see('rip', hex(rip));
}

async function guardPage(story: Narrator, guest: Guest, player: Player): Promise<void> {
  const gpa = kernelAddress('test_page');
  story.step(
    'Guard a page, and block a write',
    "guest.on('PF', (event) => skipInstruction(event));\n" +
      'await guest.setPageAccess([{ gpa, access: READ | EXECUTE }]);',
  );
  const before = (await guest.memory.readBytes(gpa, 1))[0];
  let blocked = 0;
  const off = guest.on('PF', ({ data, registers }) => {
    blocked++;
    story.see('write to', `${hex(data.gpa)} at rip ${hex(registers.rip)}`);
    registers.rip += WRITE_INSTRUCTION_LENGTH;
    return { action: 'retry', registers };
  });
  await guest.enable('PF');
  await guest.setPageAccess([{ gpa, access: READ_AND_EXECUTE }]);
  await player.act('write', 0n, 0x66n);
  story.proof('the write was stopped', blocked === 1);
  story.proof('the page is as before', (await guest.memory.readBytes(gpa, 1))[0] === before);
  await guest.setPageAccess([{ gpa, access: READ_WRITE_EXECUTE }]);
  await guest.disable('PF');
  off();
}

/** `mov [rdi + test_page], al`, as the mini kernel has it. */
const WRITE_INSTRUCTION_LENGTH = 6n;

async function changeWrites(story: Narrator, guest: Guest, player: Player): Promise<void> {
  const vcpu = guest.vcpus[0]!;
  story.step(
    'Overrule a write to CR4',
    "guest.on('CR', ({ data }) => ({ newValue: data.old_value }));\n" +
      "await guest.enable('CR');\nawait guest.vcpus[0].controlCr(4, true);",
  );
  const off = guest.on('CR', ({ data }) => {
    story.see('the guest wants', `cr4 = ${hex(data.new_value)}`);
    return { newValue: data.old_value };
  });
  await guest.enable('CR');
  await vcpu.controlCr(4, true);
  const { cr4 } = await vcpu.registers();
  const now = await player.act('cr4', CR4_OSXSAVE);
  story.proof(`the guest reads back ${hex(now)}, its old value`, now === cr4);
  await vcpu.controlCr(4, false);
  await guest.disable('CR');
  off();
}

async function inject(story: Narrator, guest: Guest, player: Player): Promise<void> {
  story.step('Inject an exception', 'await guest.vcpus[0].inject({ vector: 6, errorCode: 0, address: 0n });');
  const count = (): bigint => player.kernel.read('exception_counts', UNDEFINED_INSTRUCTION * 8);
  const before = count();
  let injected: number | undefined;
  const off = guest.on('TRAP', ({ data }) => {
    injected = data.nr;
  });
  await guest.breakpoints
    .set(kernelSymbol('action_ud2'), async ({ vcpu }) => {
      await vcpu.inject({ vector: UNDEFINED_INSTRUCTION, errorCode: 0, address: 0n });
    })
    .then(async (set) => {
      await player.act('ud2');
      await set.remove();
    });
  off();
  story.see('the TRAP event tells', `vector ${injected}`);
  story.proof('the guest’s own #UD handler saw it', count() > before);
}

async function unhook(story: Narrator, guest: Guest, player: Player): Promise<void> {
  story.step('Unhook', 'await guest.detach();');
  await guest.detach();
  const ticks = player.ticks;
  while (player.ticks < ticks + 3n) await turn();
  story.proof('the guest’s clock goes on', true);
  story.proof('it writes CR4 as it likes again', (await player.act('cr4')) > 0n);
  await player.machine.close();
}

function text(bytes: Uint8Array): string {
  const end = bytes.findIndex((byte) => byte === 0 || byte === 0x0a);
  return Buffer.from(bytes.subarray(0, end < 0 ? bytes.length : end)).toString('latin1');
}

/** The ring of tasks, read as a tool reads it: one guest-virtual address after another. */
async function tasks(guest: Guest): Promise<{ pid: number; ppid: number; comm: string }[]> {
  const { memory } = guest.vcpus[0]!;
  const field = (name: string): number => kernelNumber('task', name);
  const first = kernelSymbol('tasks');
  const found = [];
  let task = first;
  do {
    const bytes = await memory.readBytes(task, kernelNumber('task', 'size'));
    const comm = text(bytes.subarray(field('comm'), field('comm') + 16));
    found.push({ pid: getU32(bytes, field('pid')), ppid: getU32(bytes, field('ppid')), comm });
    task = getU64(bytes, field('next'));
  } while (task !== first && found.length < 32);
  return found;
}
