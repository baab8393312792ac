//! What is said of jobs in a pipeline file: `[jobs]` and `[[schedule]]`.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{
    schedule::{Schedule, When},
    work::{Kind, ReplayMode, Work},
};
use crate::{setting::SettingError, units::Period};

/// `[jobs]`: long work beside the streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How many jobs the daemon works on at once, 1 to 16.
    pub at_once: usize,
    /// Records a second that a job reads at most; 0: no limit. Whatever it is,
    /// jobs have the lowest priority, and wait while the stream is behind.
    pub rate: u32,
    /// How long jobs that have ended are remembered.
    pub keep: Period,
}

impl Default for Settings {
    fn default() -> Self {
        Self { at_once: 4, rate: 5_000, keep: Period::secs(30 * 24 * 3_600) }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless((1..=16).contains(&self.at_once), "at_once", "write 1 to 16")?;
        SettingError::unless(self.keep >= Period::secs(3_600), "keep", "must be 1h or more")
    }
}

/// A `[[schedule]]`: a job that comes again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSettings {
    /// Which job. One that has a schedule of its own without being asked
    /// (`orphan_check`; `retention`, where an age is set) has this instead.
    pub job: Kind,
    /// When: MINUTE HOUR DAY MONTH WEEKDAY, or six fields with seconds first.
    pub cron: String,
    /// Tells it from other schedules; the job's name if left out.
    #[serde(default)]
    pub name: Option<String>,
    /// Zone of those times, such as `Europe/Zurich`.
    #[serde(default = "utc")]
    pub timezone: String,
    /// Whether times that were missed because no daemon ran are made up for,
    /// by one job.
    #[serde(default = "yes")]
    pub catch_up: bool,
    /// `false`: never.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// `train_dictionary`: only if at least so many segments were sealed since
    /// the last training.
    #[serde(default)]
    pub if_new_segments: Option<u64>,
    /// `backup`: the folder in which each backup makes one of its own,
    /// relative to `data_dir`; `backups` if left out.
    #[serde(default)]
    pub to: Option<String>,
    /// `backup`: copy the objects of the registry, too.
    #[serde(default)]
    pub objects: Option<bool>,
    /// `maintain`: write a SQLite file anew; writers wait meanwhile.
    #[serde(default)]
    pub vacuum: Option<bool>,
    /// `replay`: what is done with what is derived.
    #[serde(default)]
    pub mode: Option<ReplayMode>,
}

fn utc() -> String {
    "UTC".into()
}

const fn yes() -> bool {
    true
}

impl ScheduleSettings {
    /// The name, whether written or not.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.job.as_str())
    }

    /// The schedule that is meant.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn schedule(&self) -> Result<Schedule, SettingError> {
        let name = self.name();
        let is_name = (1..=64).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        SettingError::unless(is_name, "name", "write 1 to 64 of a-z, 0-9, `_` and `-`")?;
        let given = [
            ("if_new_segments", self.if_new_segments.map(Into::into)),
            ("to", self.to.clone().map(Into::into)),
            ("objects", self.objects.map(Into::into)),
            ("vacuum", self.vacuum.map(Into::into)),
            ("mode", self.mode.and_then(|mode| serde_json::to_value(mode).ok())),
        ];
        let mut parameters = Map::new();
        for (key, value) in given {
            let Some(value) = value else { continue };
            let one = Map::from_iter([(key.to_owned(), value)]);
            Work::of(self.job, one.clone()).map_err(|_| {
                let message = format!("means nothing for a job `{}`; leave it out", self.job.as_str());
                SettingError::new(key, message)
            })?;
            parameters.extend(one);
        }
        let work =
            Work::of(self.job, parameters).map_err(|error| SettingError::new("job", error.to_string()))?;
        let when = When::new(&self.cron, &self.timezone).map_err(|error| {
            let key =
                if matches!(error, super::schedule::WhenError::Zone { .. }) { "timezone" } else { "cron" };
            SettingError::new(key, error.to_string())
        })?;
        Ok(Schedule { name: name.to_owned(), work, when, catch_up: self.catch_up, is_built_in: false })
    }
}

/// Everything that cannot be meant; keys are paths from the top of the file.
pub fn refused(written: &[ScheduleSettings]) -> Vec<SettingError> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (i, one) in written.iter().enumerate() {
        let mut refuse = |key: &str, message: String| {
            found.push(SettingError::new(format!("schedule[{i}].{key}"), message));
        };
        if let Err(error) = one.schedule() {
            refuse(&error.key, error.message);
        }
        if !names.insert(one.name()) {
            let key = if one.name.is_some() { "name" } else { "job" };
            refuse(key, format!("the name `{}` is taken; give each schedule its own `name`", one.name()));
        }
    }
    found
}

/// What is there without being asked for: job, time, and whether it needs
/// `[retention]`.
const BUILT_IN: [(Kind, &str, bool); 2] =
    [(Kind::OrphanCheck, "7 * * * *", false), (Kind::Retention, "37 * * * *", true)];

/// The schedules in force: those that are written and enabled, and those that
/// are built in for jobs that none is written for. `retains`: whether anything
/// is ever too old.
pub fn schedules(written: &[ScheduleSettings], retains: bool) -> Vec<Schedule> {
    let own = written.iter().filter(|one| one.enabled).filter_map(|one| one.schedule().ok());
    let missing = BUILT_IN.into_iter().filter(|(kind, _, of_retention)| {
        (retains || !of_retention) && written.iter().all(|one| one.job != *kind)
    });
    let built_in = missing.filter_map(|(kind, cron, _)| {
        let work = Work::of(kind, Map::new()).ok()?;
        let when = When::new(cron, "UTC").ok()?;
        Some(Schedule { name: kind.as_str().to_owned(), work, when, catch_up: true, is_built_in: true })
    });
    own.chain(built_in).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> ScheduleSettings {
        toml::from_str(text).unwrap()
    }

    fn names(written: &[ScheduleSettings], retains: bool) -> Vec<String> {
        let shown =
            |one: Schedule| format!("{} {}", one.name, if one.is_built_in { "built in" } else { "own" });
        schedules(written, retains).into_iter().map(shown).collect()
    }

    #[test]
    fn what_is_built_in_gives_way_to_what_is_written_also_to_nothing() {
        assert_eq!(names(&[], false), ["orphan_check built in"]);
        assert_eq!(names(&[], true), ["orphan_check built in", "retention built in"]);
        let own = written("job = \"orphan_check\"\ncron = \"0 * * * *\"");
        assert_eq!(names(std::slice::from_ref(&own), true), ["orphan_check own", "retention built in"]);
        assert_eq!(names(&[ScheduleSettings { enabled: false, ..own }], false), [""; 0]);
    }

    #[test]
    fn the_parameters_of_a_job_reach_it_and_those_of_another_are_refused() {
        let nightly = written("job = \"train_dictionary\"\ncron = \"0 3 * * *\"\nif_new_segments = 8");
        let Work::TrainDictionary(work) = nightly.schedule().unwrap().work else { panic!() };
        assert_eq!(work.if_new_segments, Some(8));
        let wrong = ScheduleSettings { job: Kind::Pack, ..nightly };
        assert_eq!(wrong.schedule().unwrap_err().key, "if_new_segments");
    }

    #[test]
    fn two_schedules_have_two_names() {
        let own = written("job = \"pack\"\ncron = \"0 */6 * * *\"");
        let keys = |written: &[ScheduleSettings]| -> Vec<String> {
            refused(written).into_iter().map(|e| e.key).collect()
        };
        assert_eq!(keys(&[own.clone(), own.clone()]), ["schedule[1].job"]);
        let named = ScheduleSettings { name: Some("weekly".into()), ..own.clone() };
        assert!(keys(&[own.clone(), named]).is_empty());
        let bad = ScheduleSettings { cron: "x".into(), timezone: "Nowhere".into(), ..own };
        assert_eq!(keys(&[bad]), ["schedule[0].cron"]);
    }
}
