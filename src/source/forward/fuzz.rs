//! The Forward protocol: a client's bytes, as they arrive.

use bytes::BytesMut;

use super::{
    event::{Mapping, Run},
    inflate::Limits,
    message::Request,
    stream::Splitter,
    unpack::{Step, Terms, Unpack},
};
use crate::{frame::Payloads, record::RecordRef};

const KEYS: [&str; 3] = ["text", "log", "message"];
pub(super) const MOST: usize = 1 << 20;

/// Everything a stream comes to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub payloads: Vec<Vec<u8>>,
    /// Codes of what is refused; `unfit` stands for what admission refuses.
    pub refused: Vec<String>,
    pub acks: Vec<u8>,
}

/// Decodes `stream` as it arrives in pieces.
pub(super) fn see_in(stream: &[u8], pieces: &[usize]) -> Seen {
    let mapping = Mapping { text_keys: KEYS.map(str::to_owned).to_vec(), max_frame: 4 << 10 };
    let limits = Limits { entry: MOST, total: 16 * MOST as u64 };
    let terms = Terms { mapping, limits };
    let (mut splitter, mut run, mut seen) = (Splitter::default(), Run::default(), Seen::default());
    let mut acks = BytesMut::new();
    let (mut rest, mut pieces) = (stream, pieces.iter().copied().chain(std::iter::repeat(usize::MAX)));
    'stream: loop {
        loop {
            let raw = match splitter.next(MOST) {
                Ok(Some((_, raw))) => raw,
                Ok(None) => break,
                Err(fault) => {
                    seen.refused.push(fault.code().to_owned());
                    break 'stream;
                }
            };
            let message = match Request::read(&raw) {
                Ok(Request::Message(message)) => message,
                Ok(Request::Heartbeat) => continue,
                Err(_) => {
                    seen.refused.push("bad_message".to_owned());
                    break 'stream;
                }
            };
            let chunk = message.chunk.clone();
            let mut unpack = Unpack::new(message, &terms);
            loop {
                let step = unpack.fill(&terms, &mut run);
                let (frames, count) = run.take();
                let before = seen.payloads.len();
                seen.payloads.extend(Payloads(frames).map(|payload| payload.to_vec()));
                assert_eq!(seen.payloads.len() - before, count as usize);
                match step {
                    Step::Full => {}
                    Step::Unfit(frame) => {
                        let payload = Payloads(frame).next().unwrap();
                        let fault = RecordRef::parse(&payload).unwrap_err();
                        seen.refused.push(format!("unfit {}", fault.code()));
                    }
                    Step::Refused(refused) => seen.refused.push(refused.code.to_owned()),
                    Step::End => break,
                }
            }
            if let Some(chunk) = chunk {
                chunk.put_ack(&mut acks);
            }
        }
        if rest.is_empty() {
            seen.refused.extend(splitter.end().err().map(|cut| cut.code().to_owned()));
            break;
        }
        let (piece, after) = rest.split_at(pieces.next().unwrap().clamp(1, rest.len()));
        splitter.feed(piece);
        rest = after;
    }
    seen.acks = acks.to_vec();
    // Whatever is told apart as good must be good.
    assert!(seen.payloads.iter().all(|payload| RecordRef::parse(payload).is_ok()));
    seen
}

/// The first byte is the size of the pieces that a stream arrives in, which
/// makes no difference to what it becomes; the second says how the rest is
/// compressed where it is taken for the entries of one message.
pub fn target(input: &[u8]) {
    let Some(([piece, kind], rest)) = input.split_first_chunk() else { return };
    let compressed: &[u8] = match kind % 3 {
        0 => b"\x80",
        1 => b"\x81\xaacompressed\xa4gzip",
        _ => b"\x81\xaacompressed\xa4zstd",
    };
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX).to_be_bytes();
    let packed = [b"\x93\xa1t\xc6", &length[..], rest, compressed].concat();
    for stream in [rest, &packed] {
        let pieces = vec![usize::from(*piece) + 1; stream.len()];
        assert_eq!(see_in(stream, &pieces), see_in(stream, &[]));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_the_forward_protocol() {
        crate::fuzz::bounded("forward", super::target);
    }
}
