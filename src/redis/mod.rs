//! Redis, where several daemons share what each could do without.
//!
//! Nothing is kept here that is not elsewhere, or cannot be had again: Redis
//! may be away at the start, be killed, hang or answer nonsense, and the rest
//! goes on. [`Redis`] is one connection that all commands share and one task
//! that sees to it. A command that fails, or has no answer within the
//! time-out, loses the connection; from then on commands are refused at once,
//! and only that task tries, outside of anybody's request, whether Redis is
//! back. So a dead Redis costs those who ask at that moment one time-out.
//!
//! `docs/redis.md` says what a user sees of it.

mod connection;
mod link;
mod settings;
mod trigger;

pub use self::{
    connection::{Redis, RedisError},
    settings::Settings,
    trigger::Trigger,
};
