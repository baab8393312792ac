// Verifies a delivery of a Thalweg webhook.
//
//     node verify_webhook.ts SIGNATURE NOW SECRET... < BODY
//
// Prints the event and ends with 0 if SIGNATURE, the value of the header
// `Thalweg-Signature`, is of BODY by one of the secrets; else says why not and
// ends with 1. NOW is in seconds since the Unix epoch. Types follow from the
// default values, so this is JavaScript as well.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';

const TOLERANCE_S = 300;

/** Throws unless one of the secrets signed these bytes lately. */
export function verify(body = Buffer.alloc(0), signature = '', secrets = [''], now = 0) {
  const parts = signature.split(',').map((part) => part.split('='));
  const time = parts.find(([name]) => name === 't')?.[1] ?? '';
  if (!/^\d+$/.test(time) || Math.abs(now - Number(time)) > TOLERANCE_S) {
    throw new Error('the signature is too old, or has no time');
  }
  const theirs = parts.filter(([name]) => name === 'v1').map(([, hex]) => Buffer.from(hex ?? '', 'hex'));
  const ours = secrets.map((secret) => createHmac('sha256', secret).update(`${time}.`).update(body).digest());
  // The body's own bytes: parsing and writing it again gives others.
  const same = ours.some((a) => theirs.some((b) => a.length === b.length && timingSafeEqual(a, b)));
  if (!same) throw new Error('the signature is of another secret or body');
}

const [, , signature, now, ...secrets] = process.argv;
const body = readFileSync(0);
try {
  verify(body, signature, secrets, Number(now));
} catch (error) {
  console.error(String(error));
  process.exit(1);
}
console.log(JSON.parse(body.toString()).event);
