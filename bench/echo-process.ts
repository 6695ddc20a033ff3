import { createServer } from 'node:net';

/*
 * A bare server of fixed sizes: for every `request` bytes it answers with `reply` bytes, however they are cut.
 * Arguments: path, request size, reply size. Prints "ready".
 */
const [, , path, requestSize, replySize] = process.argv;
const request = Number(requestSize);
const reply = Number(replySize);

createServer((socket) => {
  let pending = 0;
  socket.on('data', (bytes) => {
    pending += bytes.length;
    const answers = Math.floor(pending / request);
    pending -= answers * request;
    if (answers > 0) socket.write(new Uint8Array(reply * answers));
  });
}).listen(path, () => console.log('ready'));
