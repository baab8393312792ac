// An OpenID Connect provider for tests: the certified implementation
// `oidc-provider`, with clients that get tokens for themselves.
//
//     node oidc_provider.mjs
//
// Says `{"issuer": ...}` on a line once it listens. The line `rotate` on
// standard input gives it new keys and forgets the old; it answers `rotated`.
// Ends with its standard input.
//
// Each client's id says how its tokens are signed and what they claim:
// ALGORITHM.AUDIENCE.TENANT.ROLES, with `_` between roles.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// What it has to say is for people; the answers are for the test.
console.info = console.warn = console.error;

const installed = join(process.env.NODE_PATH, 'oidc-provider', 'lib', 'index.js');
const { default: Provider } = await import(pathToFileURL(installed));

const CLIENTS = [
  'RS256.thalweg.acme.ingester',
  'ES256.thalweg.acme.ingester_viewer',
  'ES256.thalweg.acme.viewer',
  'ES256.other.acme.ingester',
  'ES256.thalweg..ingester',
];

function keys() {
  const key = (pair, alg) => ({
    ...pair.privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomBytes(8).toString('hex'),
  });
  return [
    key(generateKeyPairSync('rsa', { modulusLength: 2048 }), 'RS256'),
    key(generateKeyPairSync('ec', { namedCurve: 'P-256' }), 'ES256'),
  ];
}

function provider(issuer) {
  return new Provider(issuer, {
    jwks: { keys: keys() },
    cookies: { keys: ['of no use here'] },
    clients: CLIENTS.map((id) => ({
      client_id: id, client_secret: 'sesame', grant_types: ['client_credentials'],
      redirect_uris: [], response_types: [],
    })),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:thalweg',
        getResourceServerInfo: (_context, _resource, client) => {
          const [alg, audience] = client.clientId.split('.');
          return {
            scope: '', audience, accessTokenFormat: 'jwt', accessTokenTTL: 600, jwt: { sign: { alg } },
          };
        },
      },
    },
    ttl: { ClientCredentials: 600 },
    extraTokenClaims: (_context, token) => {
      const [, , tenant, roles] = token.clientId.split('.');
      return { ...(tenant && { tenant }), roles: roles.split('_') };
    },
  });
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  let answer = provider(issuer).callback();
  server.on('request', (request, response) => answer(request, response));
  console.log(JSON.stringify({ issuer }));
  const commands = createInterface({ input: process.stdin });
  commands.on('line', (line) => {
    if (line === 'rotate') {
      answer = provider(issuer).callback();
      console.log('rotated');
    }
  });
  commands.on('close', () => process.exit(0));
});
