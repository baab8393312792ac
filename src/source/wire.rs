//! What a server answers on a connection; `docs/protocol.md` tells it to
//! people who write clients.

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::{frame::put_frame, pipeline::Refusal};

/// How safe an acknowledged frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Written and synced to the local disk.
    Disk,
}

/// One answer frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Reply {
    /// The next `count` frames of the connection are durable.
    Ack {
        /// How safe they are.
        level: Level,
        /// The stream they are in.
        stream: String,
        /// Offset of the first; the others follow without gap.
        offset: u64,
        /// How many.
        count: u64,
    },
    /// The next frame of the connection was not taken; if `fatal`, neither
    /// was any after it, and the connection is closed.
    Error {
        /// Which frame, from 0.
        frame: u64,
        /// Where it begins, in bytes from the start of the connection.
        byte: u64,
        /// The stable code.
        code: String,
        /// What is wrong.
        message: String,
        /// Whether the connection ends here.
        fatal: bool,
    },
    /// The server takes nothing more on this connection.
    Closing {
        /// Why.
        reason: String,
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// An answer of a later version, to be ignored.
    #[serde(other, skip_serializing)]
    Unknown,
}

impl Reply {
    /// Appends the reply as a frame.
    pub fn put(&self, out: &mut BytesMut) {
        // Strings and integers always serialise.
        let payload = rmp_serde::to_vec_named(self).unwrap_or_default();
        put_frame(out, &payload);
    }
}

impl From<Refusal> for Reply {
    fn from(r: Refusal) -> Self {
        Self::Error {
            frame: r.frame,
            byte: r.byte,
            code: r.code.to_owned(),
            message: r.message,
            fatal: r.fatal,
        }
    }
}
