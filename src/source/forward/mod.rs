//! The Forward protocol of Fluentd and Fluent Bit, the side that takes events.
//!
//! Source: the *Forward Protocol Specification*, v1 and v1.5 (metadata in
//! entries), from the wiki of the Fluentd project; `compressed: zstd` as
//! Fluentd and Fluent Bit send it since. `docs/forward.md` says what becomes
//! of an event, and what of the specification is left out.
//!
//! ```text
//! bytes ─► stream ─► message ─► unpack ─► event ─► run of frames ─► Ingest
//!          values    requests   inflate   one copy                   │
//!          whole     and modes  if packed                    settled ▼
//! acks ◄──────────────────────────────────────────────────────── chunk
//! ```
//!
//! # Bounds
//! - A message has at most `max_message_bytes`; memory for it is taken as its
//!   bytes arrive. A claim beyond the cap is refused before them.
//! - Packed entries are inflated in pieces of 64 KiB, to at most
//!   [`INFLATED_TIMES`] times `max_message_bytes`; an entry on the way is at
//!   most `max_message_bytes`.
//! - Events go on in runs of about a megabyte, which wait for room in the log.
//! - Nesting costs neither memory nor stack: values are counted, not entered.
//!
//! # Promises
//! - A chunk is acknowledged when each of its events is on disk or kept as a
//!   dead letter, and not before.
//! - If an event can be neither, the connection is closed without the ack, and
//!   the client sends the chunk again. Events of it that were stored before
//!   are then stored twice; whoever makes appends idempotent finds the chunk's
//!   id in [`message::Message`] before any of its events is handed in.

mod connection;
mod event;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod inflate;
mod intake;
mod listener;
mod message;
mod stream;
mod time;
mod unpack;
mod value;

#[cfg(test)]
mod tests;

pub use listener::{DrawNonce, Listener};

use bytes::Bytes;

use event::{Mapping, Run};
use inflate::Limits;
use message::Request;
use stream::Splitter;
use unpack::{Step, Terms, Unpack};

/// How many times `max_message_bytes` the entries of a message may inflate to.
pub const INFLATED_TIMES: u64 = 16;

/// Decodes a client's bytes, after the handshake, as a connection does: the
/// frames of its good events in runs, and how many there are. For benchmarks
/// and fuzzing; `messages` is the cap on a message, `frames` that on a frame,
/// in bytes.
#[doc(hidden)]
pub fn decode(bytes: &[u8], text_keys: &[&str], messages: usize, frames: usize) -> (Vec<Bytes>, u64) {
    let mapping =
        Mapping { text_keys: text_keys.iter().map(|&key| key.to_owned()).collect(), max_frame: frames };
    let limits = Limits { entry: messages, total: messages as u64 * INFLATED_TIMES };
    let terms = Terms { mapping, limits };
    let (mut stream, mut run) = (Splitter::default(), Run::default());
    let (mut runs, mut count) = (Vec::new(), 0);
    let mut take = |run: &mut Run| {
        let (frames, made) = run.take();
        count += u64::from(made);
        runs.extend((made > 0).then_some(frames));
    };
    stream.feed(bytes);
    while let Ok(Some((_, raw))) = stream.next(messages) {
        let message = match Request::read(&raw) {
            Ok(Request::Message(message)) => message,
            Ok(Request::Heartbeat) => continue,
            Err(_) => break,
        };
        let mut unpack = Unpack::new(message, &terms);
        while !matches!(unpack.fill(&terms, &mut run), Step::End) {
            take(&mut run);
        }
    }
    take(&mut run);
    (runs, count)
}
