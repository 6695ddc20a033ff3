import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { KvmiError, messageOf } from '../error.ts';

const OTHERS = 0o077;
const LIMIT = 4096;

function refuse(path: string, why: string, hint: string): KvmiError {
  return new KvmiError('E_COOKIE_FILE', `cookie file ${path}: ${why}`, { hint, data: { path } });
}

/**
 * The secret in a file: all of its bytes, without one line end at the end.
 *
 * @throws KvmiError with code E_COOKIE_FILE, also when others than the owner may read or write the file.
 */
export function readCookieFile(path: string): Uint8Array {
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch (error) {
    throw refuse(
      path,
      messageOf(error),
      `Make one: head -c 32 /dev/urandom | base64 >${path}; chmod 600 ${path}`,
    );
  }
  try {
    const { mode, size } = fstatSync(descriptor);
    if ((mode & OTHERS) !== 0) {
      const permissions = (mode & 0o777).toString(8).padStart(4, '0');
      throw refuse(
        path,
        `its permissions ${permissions} are too open: others may read the secret`,
        `chmod 600 ${path}`,
      );
    }
    if (size > LIMIT) throw refuse(path, `it has more than ${LIMIT} bytes`, 'A cookie is a short secret.');
    return secretOf(path, readFileSync(descriptor));
  } finally {
    closeSync(descriptor);
  }
}

function secretOf(path: string, content: Buffer): Uint8Array {
  const text = content.toString('latin1').replace(/\r?\n$/, '');
  if (text === '') throw refuse(path, 'it is empty', 'Put a secret into it.');
  return new Uint8Array(Buffer.from(text, 'latin1'));
}
