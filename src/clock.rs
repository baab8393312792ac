//! Time as an argument.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Says what time it is, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The machine's clock.
pub fn system() -> Clock {
    Arc::new(system_ms)
}

/// The machine's time, in milliseconds since the Unix epoch.
pub fn system_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Whether `at_ms` is less than `age_ms` before `now_ms`, all in milliseconds.
/// A clock that was put back makes it longer ago.
pub fn is_within(at_ms: i64, age_ms: i64, now_ms: i64) -> bool {
    (0..age_ms).contains(&now_ms.saturating_sub(at_ms))
}
