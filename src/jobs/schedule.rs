//! Schedules: when a job is due, and whether a time that was missed is made up
//! for. Pure functions of the expression, of what was seen to, and of now.

use std::{fmt, str::FromStr};

use croner::Cron;
use jiff::{Timestamp, Zoned, tz::TimeZone};

use super::work::Work;

/// A due time that nobody saw to for so long was missed.
pub const MISSED_MS: i64 = 60_000;

/// Why an expression cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WhenError {
    /// It is none.
    #[error(
        "`{cron}` is no cron expression ({reason}); write MINUTE HOUR DAY MONTH WEEKDAY, such as `0 */6 * * *`"
    )]
    Cron {
        /// What was written.
        cron: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such time.
    #[error("`{cron}` is never due; no such day comes")]
    Never {
        /// What was written.
        cron: String,
    },
    /// There is no such zone.
    #[error(
        "`{timezone}` is no time zone that this machine knows; write UTC, or a name such as Europe/Zurich"
    )]
    Zone {
        /// What was written.
        timezone: String,
    },
}

/// Times that come again: a cron expression in a time zone.
#[derive(Clone, Debug)]
pub struct When {
    cron: Cron,
    text: String,
    zone: TimeZone,
}

impl When {
    /// The times of `cron`, five fields or six with seconds first, in the zone
    /// called `timezone`.
    ///
    /// # Errors
    /// See [`WhenError`].
    pub fn new(cron: &str, timezone: &str) -> Result<Self, WhenError> {
        let parsed = Cron::from_str(cron)
            .map_err(|error| WhenError::Cron { cron: cron.to_owned(), reason: error.to_string() })?;
        let zone = match timezone {
            "UTC" => TimeZone::UTC,
            name => TimeZone::get(name).map_err(|_| WhenError::Zone { timezone: name.to_owned() })?,
        };
        let when = Self { cron: parsed, text: cron.to_owned(), zone };
        // Leap days are at most eight years apart.
        match when.next(0) {
            Some(_) => Ok(when),
            None => Err(WhenError::Never { cron: cron.to_owned() }),
        }
    }

    /// The first of these times after `ms`, in milliseconds since the Unix
    /// epoch.
    pub fn next(&self, ms: i64) -> Option<i64> {
        let found = self.cron.find_next_occurrence(&self.zoned(ms)?, false).ok()?;
        Some(found.timestamp().as_millisecond())
    }

    /// The last of these times at or before `ms`.
    pub fn last(&self, ms: i64) -> Option<i64> {
        let found = self.cron.find_previous_occurrence(&self.zoned(ms)?, true).ok()?;
        Some(found.timestamp().as_millisecond())
    }

    /// `ms` without its fraction of a second, which expressions know nothing
    /// of.
    fn zoned(&self, ms: i64) -> Option<Zoned> {
        Some(Timestamp::from_second(ms.div_euclid(1_000)).ok()?.to_zoned(self.zone.clone()))
    }

    /// The time zone's name.
    pub fn timezone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Work that comes again.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Told from others by it.
    pub name: String,
    /// What is to be done.
    pub work: Work,
    /// When.
    pub when: When,
    /// Whether a time that was missed is made up for.
    pub catch_up: bool,
    /// Whether it is there without being asked for.
    pub is_built_in: bool,
}

/// What to do about a schedule now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Not,
    /// The work is to be done for this time.
    Now(i64),
    /// This time was missed, and is passed over.
    Missed(i64),
}

impl Schedule {
    /// What to do now, where all is seen to up to `settled_ms`. Of several
    /// times that were missed, one is made up for: the last.
    pub fn due(&self, settled_ms: i64, now_ms: i64) -> Due {
        match self.when.last(now_ms).filter(|due| *due > settled_ms) {
            None => Due::Not,
            Some(due) if self.catch_up || now_ms - due <= MISSED_MS => Due::Now(due),
            Some(due) => Due::Missed(due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::work::Audit;

    fn ms(time: &str) -> i64 {
        time.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn schedule(cron: &str, timezone: &str, catch_up: bool) -> Schedule {
        let when = When::new(cron, timezone).unwrap();
        Schedule { name: "s".into(), work: Work::Audit(Audit {}), when, catch_up, is_built_in: false }
    }

    #[test]
    fn a_time_is_due_once_and_exactly_from_its_moment_on() {
        let six = schedule("0 */6 * * *", "UTC", true);
        let (before, at) = (ms("2026-11-21T11:59:59.999Z"), ms("2026-11-21T12:00:00Z"));
        let settled = ms("2026-11-21T06:00:00Z");
        assert_eq!(six.due(settled, before), Due::Not);
        assert_eq!(six.due(settled, at), Due::Now(at));
        assert_eq!(six.due(at, at + 999), Due::Not);
        assert_eq!(six.when.next(at), Some(ms("2026-11-21T18:00:00Z")));
    }

    #[test]
    fn of_many_missed_times_the_last_is_made_up_for_or_none() {
        let (settled, now) = (ms("2026-11-01T02:00:00Z"), ms("2026-11-21T12:34:56Z"));
        let last = ms("2026-11-21T02:00:00Z");
        assert_eq!(schedule("0 2 * * *", "UTC", true).due(settled, now), Due::Now(last));
        assert_eq!(schedule("0 2 * * *", "UTC", false).due(settled, now), Due::Missed(last));
        // A little late is not missed.
        assert_eq!(schedule("0 2 * * *", "UTC", false).due(settled, last + MISSED_MS), Due::Now(last));
    }

    #[test]
    fn a_clock_that_goes_back_repeats_nothing() {
        let hourly = schedule("0 * * * *", "UTC", true);
        assert_eq!(hourly.due(ms("2026-11-21T12:00:00Z"), ms("2026-11-21T11:30:00Z")), Due::Not);
    }

    #[test]
    fn a_zone_moves_with_its_summer_and_a_night_that_is_skipped_has_its_time() {
        let zurich = When::new("30 2 * * *", "Europe/Zurich").unwrap();
        assert_eq!(zurich.timezone(), "Europe/Zurich");
        assert_eq!(zurich.next(ms("2026-07-01T12:00:00Z")), Some(ms("2026-07-02T00:30:00Z")));
        assert_eq!(zurich.next(ms("2026-12-01T12:00:00Z")), Some(ms("2026-12-02T01:30:00Z")));
        // 2:30 does not exist on 29 March 2026.
        let skipped = zurich.next(ms("2026-03-28T12:00:00Z")).unwrap();
        assert!((ms("2026-03-29T00:30:00Z")..=ms("2026-03-29T01:30:00Z")).contains(&skipped), "{skipped}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert!(matches!(When::new("every night", "UTC"), Err(WhenError::Cron { .. })));
        assert!(matches!(When::new("61 * * * *", "UTC"), Err(WhenError::Cron { .. })));
        assert!(matches!(When::new("0 0 30 2 *", "UTC"), Err(WhenError::Never { .. })));
        assert!(matches!(When::new("0 0 * * *", "Europe/Atlantis"), Err(WhenError::Zone { .. })));
        assert!(When::new("*/2 * * * * *", "UTC").is_ok(), "seconds may be said");
        assert!(When::new("0 0 29 2 *", "UTC").is_ok(), "leap days come");
    }
}
