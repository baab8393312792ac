//! What is sent: chat messages in frames of one size.

use std::path::Path;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use serde::Serialize;

use crate::{
    bench::data::Corpus,
    frame::{PREFIX_BYTES, put_frame},
};

/// Bytes of a frame, prefix included: a chat message with its fields.
pub const FRAME_BYTES: usize = 427;

/// Different payloads; a power of two, so that every batch size divides them.
const PAYLOADS: usize = 1 << 14;

#[derive(Serialize)]
struct Message<'a> {
    id: String,
    ts: u64,
    tenant: String,
    session: &'static str,
    source: &'static str,
    text: &'a str,
}

/// Payloads of [`FRAME_BYTES`] - 4 bytes, of real chat.
pub fn payloads(fixtures: &Path) -> Result<Vec<Bytes>> {
    let said = Corpus::load(fixtures, "irc_ubuntu")?.texts()?.join(" / ");
    // One byte a character, so that a text can be cut anywhere.
    let said: String = said.chars().filter(|c| matches!(c, ' '..='~')).collect();
    let mut rest = said.as_str();
    let mut payloads = Vec::with_capacity(PAYLOADS);
    for n in 0..PAYLOADS {
        let length = FRAME_BYTES - PREFIX_BYTES - message(n, "")?.len() - STR16_BYTES;
        if rest.len() < length {
            rest = &said;
        }
        let (text, after) = rest.split_at(length);
        rest = after;
        payloads.push(message(n, text)?.into());
    }
    Ok(payloads)
}

/// What the header of a string of 256 bytes to 64 KiB has more than that of
/// an empty one.
const STR16_BYTES: usize = 2;

fn message(n: usize, text: &str) -> Result<Vec<u8>> {
    Ok(rmp_serde::to_vec_named(&Message {
        id: format!("m-{n:08}"),
        ts: 1_700_000_000_000 + n as u64,
        tenant: format!("team-{:02}", n % 32),
        session: "ubuntu",
        source: "irc",
        text,
    })?)
}

/// The payloads as frames, `count` to a batch.
pub fn batches(payloads: &[Bytes], count: usize) -> Vec<Bytes> {
    let batch = |some: &[Bytes]| {
        let mut out = BytesMut::with_capacity(some.len() * FRAME_BYTES);
        some.iter().for_each(|payload| put_frame(&mut out, payload));
        out.freeze()
    };
    payloads.chunks(count).map(batch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordRef;

    #[test]
    fn every_frame_has_the_same_size_and_is_a_record() {
        let payloads = payloads(Path::new("fixtures")).unwrap();
        for payload in &payloads {
            assert_eq!(payload.len() + PREFIX_BYTES, FRAME_BYTES);
            assert_eq!(RecordRef::parse(payload).unwrap().source, Some("irc"));
        }
        let batches = batches(&payloads, 256);
        assert_eq!(batches.len(), payloads.len() / 256);
        assert!(batches.iter().all(|batch| batch.len() == 256 * FRAME_BYTES));
    }
}
