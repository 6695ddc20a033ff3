import { createHash } from 'node:crypto';
import { openQemu } from '../../src/drivers/qemu/index.ts';
import { type Guest, introspect } from '../../src/index.ts';
import { LinuxGuest, whyNoLinuxGuest } from '../../test/kit/linux-guest.ts';
import { hex, Narrator } from './narrator.ts';

/** A function of the kernel that `id -u` calls, and what the tool makes it return. */
const FUNCTION = '__x64_sys_getuid';
const FAKE_UID = 4242n;

/** The story on a Debian kernel in an unmodified QEMU. */
export async function linuxTour(): Promise<void> {
  const missing = whyNoLinuxGuest();
  if (missing) throw new Error(`no Linux guest can be started here: ${missing}`);
  const story = new Narrator();
  story.title('kvmi: a Debian guest in an unmodified QEMU, seen from outside');
  story.note('booting Debian’s cloud kernel under QEMU (TCG, 2 vCPUs, KASLR on) …');
  const vm = await LinuxGuest.boot({ smp: 2 });
  try {
    await tell(story, vm);
  } finally {
    await vm.kill();
  }
  story.end();
}

async function tell(story: Narrator, vm: LinuxGuest): Promise<void> {
  const symbols = await guestSymbols(vm);
  story.step('Hook', `const guest = await introspect(await openQemu({ qmp: '${vm.qmp}' }));`);
  const machine = await openQemu({ qmp: vm.qmp });
  const guest = await introspect(machine);
  story.see('name', machine.name);
  story.see('vCPUs', guest.vcpus.length);
  story.see('memory', `${machine.memory.regions.reduce((sum, { size }) => sum + size, 0) / 2 ** 20} MiB`);

  story.step('Look', 'const registers = await guest.vcpus[0].registers();');
  for (const vcpu of guest.vcpus) {
    const registers = await vcpu.registers();
    story.see(`vCPU ${vcpu.index}: rip, cr3`, `${hex(registers.rip)}  ${hex(registers.cr3)}`);
  }
  story.step('Read', 'await guest.vcpus[0].memory.readBytes(linuxBanner, 120);');
  story.see('the kernel says', await readString(guest, symbols.linux_banner));
  const before = await textHash(guest, symbols);
  story.see('kernel text, SHA-256', before.slice(0, 16));

  await breakAndChange(story, vm, guest, symbols);

  story.step('Unhook', 'await guest.detach();');
  await guest.detach();
  await machine.close();
  await vm.nextTicks(2);
  story.proof('the guest’s clock goes on', true);
  story.proof('`id -u` in the guest is 0 again', (await vm.run('id -u')).trim() === '0');
  const again = await openQemu({ qmp: vm.qmp });
  const checked = await introspect(again);
  story.proof('the kernel’s text is what it was', (await textHash(checked, symbols)) === before);
  await checked.detach();
  await again.close();
}

async function breakAndChange(
  story: Narrator,
  vm: LinuxGuest,
  guest: Guest,
  symbols: Symbols,
): Promise<void> {
  story.step(
    `Break on ${FUNCTION} and change a register`,
    `const breakpoint = await guest.breakpoints.set(${hex(symbols[FUNCTION])}n, async (event) => {\n` +
      '  event.registers.rax = 4242n; // and return to the caller\n});',
  );
  const breakpoint = await guest.breakpoints.set(symbols[FUNCTION], async (event, { hits }) => {
    const { registers, vcpu } = event;
    if (hits === 1) {
      story.see('hit on vCPU', vcpu.index);
      story.see('rip', hex(registers.rip));
    }
    registers.rax = FAKE_UID;
    registers.rip = await vcpu.memory.u64(registers.rsp);
    registers.rsp += 8n;
  });
  story.proof('`id -u` in the guest says 4242', (await vm.run('id -u')).trim() === String(FAKE_UID));
  await breakpoint.remove();
  story.see('hits', breakpoint.hits);
}

interface Symbols {
  readonly linux_banner: bigint;
  readonly _stext: bigint;
  readonly _etext: bigint;
  readonly [FUNCTION]: bigint;
}

async function guestSymbols(vm: LinuxGuest): Promise<Symbols> {
  const names = ['linux_banner', '_stext', '_etext', FUNCTION];
  const lines = await vm.run(`grep -E ' (${names.join('|')})$' /proc/kallsyms`);
  const found = lines
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/));
  return Object.fromEntries(
    found.map(([address, , name]) => [name, BigInt(`0x${address}`)]),
  ) as unknown as Symbols;
}

async function readString(guest: Guest, gva: bigint): Promise<string> {
  const bytes = await guest.vcpus[0]!.memory.readBytes(gva, 120);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0x0a)));
}

/** Kernel text as the guest has it, by the kernel's own mapping. */
async function textHash(guest: Guest, { _stext, _etext }: Symbols): Promise<string> {
  const paused = await guest.pause();
  const bytes = await guest.vcpus[0]!.memory.readBytes(_stext, Number(_etext - _stext));
  paused.resume();
  return createHash('sha256').update(bytes).digest('hex');
}
