import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Mailbox } from './mailbox.ts';

test('items come out in order, also those that were put before the end', async () => {
  const box = new Mailbox<number>();
  box.put(1);
  box.put(2);
  box.end();
  box.put(3);
  const all: number[] = [];
  for await (const item of box.read()) all.push(item);
  assert.deepEqual(all, [1, 2]);
});

test('a full mailbox makes the sender wait until it was emptied', async () => {
  const box = new Mailbox<number>();
  let sent = 0;
  let wait: Promise<void> | undefined;
  while (!wait) wait = box.put(sent++);
  let released = false;
  void wait.then(() => {
    released = true;
  });
  const reader = box.read();
  await reader.next();
  assert.equal(released, false, 'the sender waits while there are items');
  for (let i = 1; i < sent; i++) await reader.next();
  await wait;
});

test('the end releases a sender that waits, and a reader', async () => {
  const box = new Mailbox<number>();
  let wait: Promise<void> | undefined;
  while (!wait) wait = box.put(0);
  box.end();
  await wait;
  const empty = new Mailbox<number>();
  const next = empty.read().next();
  empty.end();
  assert.equal((await next).done, true);
});
