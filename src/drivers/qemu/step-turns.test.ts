import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { StepTurns } from './step-turns.ts';
import { VcpuRun } from './stopped-vcpu.ts';

describe('whose turn it is to step', () => {
  const indices = (vcpus: readonly VcpuRun[]) => vcpus.map(({ index }) => index);

  function next(turns: StepTurns, vcpus: readonly VcpuRun[]): [running: number[], steps: number[]] {
    const { running, steps } = turns.next(vcpus);
    return [indices(running), indices(steps)];
  }

  function three(): [VcpuRun, VcpuRun, VcpuRun] {
    return [new VcpuRun(0), new VcpuRun(1), new VcpuRun(2)];
  }

  test('nobody steps: all run', () => {
    assert.deepEqual(next(new StepTurns(), three()), [[0, 1, 2], []]);
  });

  test('a single step is done alone, as often as it takes', () => {
    const vcpus = three();
    vcpus[1].stepOver = true;
    const turns = new StepTurns();
    for (let i = 0; i < 2; i++) assert.deepEqual(next(turns, vcpus), [[1], [1]]);
    vcpus[1].stepOver = false;
    assert.deepEqual(next(turns, vcpus), [[0, 1, 2], []]);
  });

  test('while one steps on and on the others run, after its first step', () => {
    const vcpus = three();
    vcpus[1].stepping = true;
    const turns = new StepTurns();
    assert.deepEqual(next(turns, vcpus), [[1], [1]]);
    for (let i = 0; i < 3; i++) assert.deepEqual(next(turns, vcpus), [[0, 1, 2], [1]]);
  });

  test('several take turns, and all others run', () => {
    const vcpus = three();
    vcpus[0].stepping = vcpus[2].stepping = true;
    const turns = new StepTurns();
    const first = [next(turns, vcpus), next(turns, vcpus)];
    assert.deepEqual(first, [
      [[0], [0]],
      [[2], [2]],
    ]);
    const then = [next(turns, vcpus), next(turns, vcpus), next(turns, vcpus)];
    assert.deepEqual(then, [
      [[0, 1], [0]],
      [[1, 2], [2]],
      [[0, 1], [0]],
    ]);
  });

  test('one that waits for an interrupt runs whenever others do', () => {
    const vcpus = three();
    for (const vcpu of vcpus) {
      vcpu.stepping = true;
      vcpu.inSeries = true;
    }
    vcpus[0].waits = true;
    const turns = new StepTurns();
    assert.deepEqual(next(turns, vcpus), [
      [0, 1],
      [0, 1],
    ]);
    vcpus[1].waits = vcpus[2].waits = true;
    assert.deepEqual(next(turns, vcpus), [
      [0, 1, 2],
      [0, 1, 2],
    ]);
  });
});
