import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VECTOR } from '../../src/abi/x86.ts';
import { getFlags, setFlags } from '../../src/drivers/embedded/cpu/flags.ts';
import { highHalf, join64, lowHalf } from '../../src/drivers/embedded/cpu/wide.ts';
import { BARE, BareGuest } from '../kit/bare-guest.ts';
import { ALL, BASE, INDEX, Random, type Sample, sample } from './generator.ts';
import { Unicorn } from './unicorn.ts';

/** How many instructions are compared, and which ones. KVMI_ORACLE_COUNT and KVMI_ORACLE_SEED change that. */
const COUNT = Number(process.env.KVMI_ORACLE_COUNT ?? 200_000);
const SEED = Number(process.env.KVMI_ORACLE_SEED ?? 1);

/** Distance of instructions, and how many are written at once. */
const STRIDE = 16;
const CHUNK = 4096;
/** Where they are for us, again and again, and for unicorn, which sees no address twice. */
const OUR_CODE = 0x100000;
const THEIR_CODE = 0x1000000;
/** Iterations of a REP instruction, and the end of it. */
const REP_STEPS = 20;
const WINDOW = 1024;
const MIDDLE = BARE.data + WINDOW / 2;
const RSP = 4;
const RBP = 5;
const RDI = 7;
const RCX = 1;

const hex = (bytes: Iterable<number>) =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');

/** The registers that a sample starts with. */
function registersFor(kind: string, random: Random): bigint[] {
  const registers = Array.from({ length: 16 }, () => random.value());
  registers[BASE] = BigInt(MIDDLE + random.below(64) - 32);
  registers[INDEX] = BigInt.asUintN(64, BigInt(random.below(33) - 16));
  registers[RSP] = BigInt(MIDDLE + 8 * (random.below(16) - 8));
  registers[RBP] = BigInt(MIDDLE + 8 * (random.below(16) - 8));
  if (kind === 'string') {
    registers[INDEX] = BigInt(MIDDLE - 200 + random.below(64));
    registers[RDI] = BigInt(MIDDLE + random.below(64));
    registers[RCX] = BigInt(random.below(12));
  }
  return registers;
}

class Comparison {
  readonly unicorn: Unicorn;
  readonly guest: BareGuest;
  readonly random: Random;
  readonly ours = new Uint8Array(WINDOW);
  readonly theirs = new Uint8Array(WINDOW);
  readonly failures = new Map<string, string[]>();
  compared = 0;

  constructor(unicorn: Unicorn, seed: number) {
    this.unicorn = unicorn;
    this.guest = new BareGuest('', {});
    this.random = new Random(seed);
    unicorn.map(0, 4 * 1024 * 1024);
  }

  /** Gives both the same code, and the same random data, which stays the same as long as they agree. */
  load(theirs: number, code: Uint8Array): void {
    for (let i = 0; i < WINDOW; i++) this.ours[i] = this.random.below(256);
    this.guest.write(BARE.data, this.ours);
    this.unicorn.write(BARE.data, this.ours);
    this.guest.write(OUR_CODE, code);
    this.unicorn.write(theirs, code);
  }

  /** Compares one sample at an address where it is already. */
  compare(at: number, theirs: number, { kind, bytes, flags }: Sample): void {
    const { unicorn, guest, random } = this;
    const { cpu } = guest;
    const before = registersFor(kind, random);
    const startFlags = 2 | (random.below(0x1000) & ALL);
    before.forEach((value, i) => {
      unicorn.setRegister(i, value);
      cpu.r[2 * i] = lowHalf(value);
      cpu.r[2 * i + 1] = highHalf(value);
    });
    unicorn.flags = startFlags;
    setFlags(cpu, startFlags);
    guest.rip = BigInt(at);
    const executed = unicorn.step(theirs, bytes.length);
    cpu.attention = 0;
    cpu.eventPending = false;
    for (let i = 0; i < REP_STEPS && guest.rip === BigInt(at) && !cpu.eventPending; i++) guest.machine.step();
    this.compared++;
    const problem = this.#difference(executed, before, flags, at + bytes.length);
    if (problem === undefined) return;
    const found = this.failures.get(kind) ?? [];
    const start = before.map((value) => value.toString(16)).join(' ');
    found.push(`${hex(bytes)}: ${problem}; registers ${start}, flags ${startFlags.toString(16)}`);
    this.failures.set(kind, found);
  }

  /** What is different after the instruction, if anything is. */
  #difference(executed: boolean, before: readonly bigint[], flags: number, next: number): string | undefined {
    const { unicorn, guest } = this;
    const { cpu } = guest;
    if (!executed) {
      if (!cpu.eventPending) return 'unicorn raised an exception, we did not';
      if (cpu.fault.vector !== VECTOR.DE) return `exception ${cpu.fault.vector} where unicorn had one too`;
      const changed = before.findIndex((value, i) => join64(cpu.r[2 * i]!, cpu.r[2 * i + 1]!) !== value);
      return changed < 0 ? undefined : `register ${changed} changed by an instruction that faults`;
    }
    if (cpu.eventPending) return `exception ${cpu.fault.vector}, unicorn executed it`;
    for (let i = 0; i < 16; i++) {
      const ours = join64(cpu.r[2 * i]!, cpu.r[2 * i + 1]!);
      const theirs = unicorn.register(i);
      if (ours !== theirs) return `register ${i} is ${ours.toString(16)}, unicorn has ${theirs.toString(16)}`;
    }
    const different = (getFlags(cpu) ^ unicorn.flags) & flags;
    if (different !== 0) {
      return `flags differ in ${different.toString(16)}: ${getFlags(cpu).toString(16)}, unicorn ${unicorn.flags.toString(16)}`;
    }
    if (guest.rip !== BigInt(next)) return `rip is ${guest.rip.toString(16)}`;
    guest.machine.memory.read(BARE.data, this.ours);
    unicorn.read(BARE.data, this.theirs);
    const place = this.ours.findIndex((byte, i) => byte !== this.theirs[i]);
    return place < 0 ? undefined : `memory differs at offset ${place}`;
  }
}

test('instructions do what libunicorn2 does', async (t) => {
  const unicorn = await Unicorn.open();
  if (typeof unicorn === 'string') {
    t.skip(unicorn);
    return;
  }
  const comparison = new Comparison(unicorn, SEED);
  const chunk = new Uint8Array(CHUNK * STRIDE);
  unicorn.map(THEIR_CODE, Math.ceil(COUNT / CHUNK) * chunk.length);
  let done = 0;
  for (let base = THEIR_CODE; done < COUNT; base += chunk.length) {
    const samples = Array.from({ length: Math.min(CHUNK, COUNT - done) }, () => sample(comparison.random));
    chunk.fill(0x90);
    samples.forEach((entry, i) => {
      chunk.set(entry.bytes, i * STRIDE);
    });
    comparison.load(base, chunk);
    for (const [i, entry] of samples.entries()) {
      comparison.compare(OUR_CODE + i * STRIDE, base + i * STRIDE, entry);
    }
    done += samples.length;
  }
  const report = [...comparison.failures].map(([kind, found]) => `${kind} (${found.length}): ${found[0]}`);
  t.diagnostic(`${comparison.compared} instructions compared, seed ${SEED}`);
  assert.deepEqual(report, []);
});
