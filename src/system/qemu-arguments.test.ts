import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseQemuArguments } from './qemu-arguments.ts';

function parse(line: string) {
  return parseQemuArguments(line.split(' '));
}

test('a short command line', () => {
  assert.deepEqual(parse('-name web -m 2G -smp 4 -enable-kvm -qmp unix:/run/vm.qmp,server=on,wait=off'), {
    name: 'web',
    uuid: undefined,
    vcpus: 4,
    memory: 2 * 2 ** 30,
    accelerator: 'kvm',
    qmp: ['/run/vm.qmp'],
    libvirt: false,
  });
});

test('what a management layer writes: properties, QMP through a character device', () => {
  const line =
    '-name guest=db,debug-threads=on -machine pc-q35-7.2,usb=off,accel=kvm:tcg -m size=1048576k ' +
    '-smp 2,maxcpus=8,sockets=2 -uuid 8F3C2F0E-0000-0000-0000-00000000000A ' +
    '-chardev socket,id=serial,path=/run/serial -chardev socket,id=mon,path=/run/q,,mp,server=on ' +
    '-mon chardev=mon,id=monitor,mode=control -mon chardev=serial,mode=readline';
  assert.deepEqual(parse(line), {
    name: 'db',
    uuid: '8f3c2f0e-0000-0000-0000-00000000000a',
    vcpus: 2,
    memory: 2 ** 30,
    accelerator: 'kvm',
    qmp: ['/run/q,mp'],
    libvirt: false,
  });
});

test('a domain of libvirt keeps its monitor for itself', () => {
  const line =
    '-name guest=db -chardev socket,id=charmonitor,fd=25,server=on -mon chardev=charmonitor,id=monitor,mode=control';
  assert.deepEqual([parse(line).libvirt, parse(line).qmp], [true, []]);
});

test('what is not said has the defaults of QEMU', () => {
  assert.deepEqual(parse('-display none'), {
    name: undefined,
    uuid: undefined,
    vcpus: 1,
    memory: 128 * 2 ** 20,
    accelerator: 'tcg',
    qmp: [],
    libvirt: false,
  });
  assert.equal(parse('-smp cpus=3,cores=3').vcpus, 3);
  assert.equal(parse('-accel tcg,thread=multi').accelerator, 'tcg');
  assert.equal(parse('--accel kvm').accelerator, 'kvm');
});

test('nonsense does no harm', () => {
  assert.equal(parse('-m').memory, 0);
  assert.equal(parse('-smp many').vcpus, 1);
  assert.equal(parse('-m lots -name').memory, 0);
  assert.deepEqual(parse('-qmp tcp:localhost:4444 -qmp stdio -mon chardev=none,mode=control').qmp, []);
});
