//! A client's byte stream, cut into requests.
//!
//! MessagePack values follow each other without lengths, so a stream that is
//! broken once cannot be read on: every fault here ends the connection.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    unpack::Refused,
    value::{Extent, NoEnd},
};

/// Bytes that one read asks for.
const READ_BYTES: usize = 64 << 10;
/// Most bytes that are made room for before they arrive.
const RESERVE_BYTES: usize = 256 << 10;
/// How much of what cannot be read is kept.
pub(super) const HEAD_BYTES: usize = 4 << 10;

/// Why a stream cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the message is longer than max_message_bytes, {most} bytes; let the client send smaller chunks")]
    Oversized { most: usize },
    #[error("byte 0xc1 at byte {at} of the message is not MessagePack")]
    NotMessagePack { at: usize },
    #[error("the connection ended inside a message, after {bytes} bytes of it")]
    Truncated { bytes: usize },
}

impl Fault {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Oversized { .. } => "oversized",
            Self::NotMessagePack { .. } => "not_messagepack",
            Self::Truncated { .. } => "truncated",
        }
    }
}

/// Cuts bytes into values.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    buffer: BytesMut,
    extent: Extent,
    position: u64,
    started: u64,
}

impl Splitter {
    /// The next whole value and where it begins in the stream; `None` until
    /// more bytes have arrived. Values of more than `most` bytes are refused.
    pub(super) fn next(&mut self, most: usize) -> Result<Option<(u64, Bytes)>, Fault> {
        self.started = self.position;
        let end = self.extent.find(&self.buffer, most).map_err(|no_end| match no_end {
            NoEnd::TooLong { most } => Fault::Oversized { most },
            NoEnd::Reserved { at } => Fault::NotMessagePack { at },
        })?;
        let Some(end) = end else { return Ok(None) };
        self.extent = Extent::default();
        let at = self.started;
        self.position += end as u64;
        let value = self.buffer.split_to(end).freeze();
        if end > RESERVE_BYTES && self.buffer.len() < READ_BYTES {
            // Lets the room of a long message go with it.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Ok(Some((at, value)))
    }

    /// Where the last value given out begins or, once there is a fault, the
    /// value that is not whole.
    pub(super) fn started(&self) -> u64 {
        self.started
    }

    /// So begins what cannot be read.
    fn head(&self) -> Bytes {
        Bytes::copy_from_slice(self.buffer.get(..HEAD_BYTES).unwrap_or(&self.buffer))
    }

    /// What the end of the stream makes of the bytes that are left.
    pub(super) fn end(&self) -> Result<(), Fault> {
        match self.buffer.len() {
            0 => Ok(()),
            bytes => Err(Fault::Truncated { bytes }),
        }
    }

    /// What is refused because of `fault`, with its head for a dead letter.
    pub(super) fn refused(&self, fault: &Fault) -> Refused {
        Refused { code: fault.code(), message: fault.to_string(), payload: self.head() }
    }

    /// Takes bytes that arrived.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Reads what has arrived; 0 at the end of the stream. Memory for a long
    /// value is taken as its bytes arrive, not as its head claims.
    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, read: &mut R) -> io::Result<usize> {
        let missing = self.extent.missing(&self.buffer);
        self.buffer.reserve(missing.clamp(READ_BYTES, RESERVE_BYTES));
        read.read_buf(&mut self.buffer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_takes_no_memory_before_its_bytes_arrive() {
        let mut splitter = Splitter::default();
        let mut claim = &[0x92, 0xa1, b't', 0xc6, 0x03, 0xff, 0xff, 0x00, 1, 2, 3][..];
        assert_eq!(splitter.fill(&mut claim).await.unwrap(), 11);
        assert_eq!(splitter.next(64 << 20), Ok(None));
        splitter.fill(&mut &[4; 10][..]).await.unwrap();
        assert!(splitter.buffer.capacity() <= 2 * RESERVE_BYTES);
        assert_eq!(splitter.end(), Err(Fault::Truncated { bytes: 21 }));
    }

    #[test]
    fn values_have_their_places_and_a_fault_its_head() {
        let mut splitter = Splitter::default();
        splitter.feed(b"\x92\x01\x02\xc0\x91\xc1");
        assert_eq!(splitter.next(10), Ok(Some((0, Bytes::from_static(b"\x92\x01\x02")))));
        assert_eq!(splitter.next(10), Ok(Some((3, Bytes::from_static(b"\xc0")))));
        assert_eq!(splitter.next(10), Err(Fault::NotMessagePack { at: 1 }));
        assert_eq!((splitter.started(), splitter.head()), (4, Bytes::from_static(b"\x91\xc1")));
    }
}
