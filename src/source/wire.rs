//! What is said on a connection beside the frames; `docs/protocol.md` tells it
//! to people who write clients.

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{frame::PREFIX_BYTES, log::Ack, pipeline::Refusal};

/// How safe an acknowledged frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// In the memory of the system: it outlives the process.
    Memory,
    /// Written and synced to the local disk: it outlives a power cut.
    Disk,
}

impl From<Ack> for Level {
    fn from(ack: Ack) -> Self {
        match ack {
            Ack::Memory => Self::Memory,
            Ack::Disk => Self::Disk,
        }
    }
}

/// One answer frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Reply {
    /// The answer to a hello; it stands for no frame.
    Welcome {
        /// The producer, if the hello named one; so with the others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        producer: Option<String>,
        /// Its epoch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
        /// The number of the next frame of it that the server does not have.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
    },
    /// The next `count` frames of the connection are durable.
    Ack {
        /// How safe they are.
        level: Level,
        /// The stream they are in.
        stream: String,
        /// Offset of the first; the others follow without gap. Not known of
        /// duplicates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        /// How many.
        count: u64,
        /// Whether they were in the log before and not stored again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        duplicate: bool,
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

/// The hello of a client that knows where it is; see [`super::hello`].
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Hello {
    /// Version of the protocol.
    pub thalweg: u64,
    /// Name of the producer, if its frames are numbered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Its epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Number of the first frame that follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// An API key or a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Hello {
    /// Appends the hello as a frame.
    pub fn put(&self, out: &mut BytesMut) {
        put_map(out, self);
    }
}

impl Reply {
    /// Appends the reply as a frame.
    pub fn put(&self, out: &mut BytesMut) {
        put_map(out, self);
    }
}

/// Appends a frame around `map`.
fn put_map(out: &mut BytesMut, map: &impl Serialize) {
    let at = out.len();
    out.put_u32(0);
    // Strings and integers always serialise, and a buffer takes them all.
    let written = rmp_serde::encode::write_named(&mut out.writer(), map);
    debug_assert!(written.is_ok());
    let length = u32::try_from(out.len() - at - PREFIX_BYTES).unwrap_or_default();
    if let Some(mut prefix) = out.get_mut(at..at + PREFIX_BYTES) {
        prefix.put_u32(length);
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
