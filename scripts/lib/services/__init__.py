"""The real components that the tests run against, without Docker.

`scripts/services` is the command. Each component has a file: how it is had,
started, known to be ready, and addressed. The rest is shared: `instance` (a
named set of components with its folder and ports), `process` (one daemon and
its pid file), `packages` (where the programs come from), `component` (what
all of them have in common).

Linux only: process identities are read from /proc.
"""
