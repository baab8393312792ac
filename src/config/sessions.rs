//! `[sessions]`: what the connections of all socket sources may use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    setting::SettingError,
    units::{ByteSize, Period},
};

/// `[sessions]`: how many connections the socket sources serve together, and
/// what they may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// Connections served at once, over all sources of type `tcp` and `unix`.
    pub max_active: usize,
    /// Further connections that wait for their turn; one more is refused.
    pub max_waiting: usize,
    /// How long a connection waits for its turn before it is refused.
    pub max_wait: Period,
    /// How long a frame may take from its first byte to its last. Between
    /// frames a connection may be silent for ever.
    pub frame_timeout: Period,
    /// Bytes of one connection that may be on their way to the disk; more are
    /// not read from it. One frame may be longer.
    pub in_flight_bytes: ByteSize,
    /// Bytes of the frames over 64KiB that may arrive at the same time, over
    /// all connections; further ones wait. One frame may be longer.
    pub large_frame_bytes: ByteSize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            max_active: 1024,
            max_waiting: 1024,
            max_wait: Period::secs(10),
            frame_timeout: Period::secs(60),
            in_flight_bytes: ByteSize::mib(8),
            large_frame_bytes: ByteSize::mib(64),
        }
    }
}

impl Sessions {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        const MOST: usize = 1 << 20;
        SettingError::unless(
            (1..=MOST).contains(&self.max_active),
            "max_active",
            format!("with {} sessions nothing could arrive; write 1 to {MOST}", self.max_active),
        )?;
        SettingError::unless(
            self.max_waiting <= MOST,
            "max_waiting",
            format!("{} is too many; write 0 to {MOST}", self.max_waiting),
        )?;
        SettingError::unless(
            !self.frame_timeout.0.is_zero(),
            "frame_timeout",
            "no frame arrives in no time; write `1s` or more",
        )?;
        for (key, size) in
            [("in_flight_bytes", self.in_flight_bytes), ("large_frame_bytes", self.large_frame_bytes)]
        {
            let message = format!("must be between 64KiB and 4GiB, not {size}");
            let fine = (ByteSize::kib(64)..=ByteSize::mib(4 << 10)).contains(&size);
            SettingError::unless(fine, key, message)?;
        }
        Ok(())
    }
}
