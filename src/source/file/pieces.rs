//! What a file holds, in bounded pieces. All of it blocks.

use std::io::{self, BufRead, BufReader, Read};

use bytes::BytesMut;
use tokio_util::codec::Decoder;

use super::{
    super::json::{LineParser, Parsed},
    Content,
};
use crate::{
    frame::{FrameBatch, FrameCodec, Unit, put_frame},
    units::ByteSize,
};

/// Reads and cuts `input` until its end, or until `take` wants no more: it is
/// given each piece, and says whether to go on.
///
/// # Errors
/// If `input` cannot be read, or holds a line that is too long.
pub fn read_pieces(
    input: impl Read,
    content: Content,
    max_frame: ByteSize,
    take: &mut dyn FnMut(Parsed) -> bool,
) -> io::Result<()> {
    let mut input = unpacked(input)?;
    match content {
        Content::Frames => read_frames(&mut input, max_frame, take),
        Content::JsonLines => read_lines(&mut input, max_frame, take),
    }
}

const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// `input`, decompressed if it begins as Zstandard does.
fn unpacked<'a>(input: impl Read + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    if input.fill_buf()?.starts_with(&ZSTD_MAGIC) {
        let decoder = zstd::Decoder::with_buffer(input)?;
        return Ok(Box::new(BufReader::with_capacity(256 << 10, decoder)));
    }
    Ok(Box::new(input))
}

fn read_frames(
    input: &mut dyn BufRead,
    max_frame: ByteSize,
    take: &mut dyn FnMut(Parsed) -> bool,
) -> io::Result<()> {
    let mut codec = FrameCodec::new(max_frame);
    let (mut buffer, mut frame, mut ended) = (BytesMut::new(), 0, false);
    while !ended {
        let read = input.fill_buf()?;
        let n = read.len();
        buffer.extend_from_slice(read);
        input.consume(n);
        ended = n == 0;
        loop {
            let unit = if ended { codec.decode_eof(&mut buffer)? } else { codec.decode(&mut buffer)? };
            let Some(unit) = unit else { break };
            let Some(unit) = without_emptied(unit) else { continue };
            let piece = Parsed::Unit { frame, unit };
            frame = piece.end();
            if !take(piece) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A run of frames without those that are empty, if any is not: in a sealed
/// segment they stand for what was erased.
fn without_emptied(unit: Unit) -> Option<Unit> {
    let Unit::Run { at, count, bytes } = unit else { return Some(unit) };
    let batch = FrameBatch { base_offset: 0, append_time_ms: 0, count, bytes };
    if batch.payloads().all(|(_, payload)| !payload.is_empty()) {
        return Some(Unit::Run { at, count, bytes: batch.bytes });
    }
    let (mut kept, mut left) = (BytesMut::new(), 0);
    for (_, payload) in batch.payloads().filter(|(_, payload)| !payload.is_empty()) {
        put_frame(&mut kept, &payload);
        left += 1;
    }
    (left > 0).then(|| Unit::Run { at, count: left, bytes: kept.freeze() })
}

fn read_lines(
    input: &mut dyn BufRead,
    max_frame: ByteSize,
    take: &mut dyn FnMut(Parsed) -> bool,
) -> io::Result<()> {
    // JSON is longer than MessagePack, but not by this much; a longer line
    // can only be refused, so it is not gathered whole.
    let max_line = 8 * max_frame.0 + (64 << 10);
    let mut parser = LineParser::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        input.take(max_line).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 == max_line && line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!(
                "line {} is longer than {max_line} bytes; no record of it would fit in max_frame_bytes ({max_frame})",
                parser.lines() + 1
            )));
        }
        for parsed in parser.line(&line) {
            if !take(parsed) {
                return Ok(());
            }
        }
    }
    if let Some(rest) = parser.finish() {
        take(rest);
    }
    Ok(())
}
