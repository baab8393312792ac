//! What a pipeline keeps: log, store, artifacts.

use std::{fs, path::Path};

use super::Check;
use crate::{
    cli::{offline, output::count},
    clock,
    config::Pipeline,
    durable,
    log::segment_name,
    pipeline::Offsets,
    store::{Checkpoint, Damage, DamageKind, Store},
};

/// Looks at everything that is there; what is not there yet is fine.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    let found = offline::find_store(pipeline).await;
    let (mut checks, end_offset) = log(pipeline, found.as_ref().ok().and_then(Option::as_ref)).await;
    match found {
        Ok(None) => checks.push(Check::ok("store", "not made yet")),
        Ok(Some(store)) => {
            let looked = look(pipeline, &store, end_offset).await;
            checks.extend(looked.unwrap_or_else(|error| vec![unreadable(&error)]));
            store.close().await;
        }
        Err(error) => checks.push(unreadable(&error)),
    }
    checks
}

fn unreadable(error: &anyhow::Error) -> Check {
    let advice = "keep the file; with it moved aside, the daemon derives everything in the log again";
    Check::problem("store", format!("{error:#}"), advice)
}

/// The log, and where it ends.
async fn log(pipeline: &Pipeline, store: Option<&Store>) -> (Vec<Check>, Option<u64>) {
    let folder = offline::log_folder(pipeline);
    if !folder.path().is_dir() {
        return (vec![Check::ok("log", "not made yet")], None);
    }
    let (reader, recovery) = match offline::log(pipeline) {
        Ok(opened) => opened,
        Err(error) => {
            return (
                vec![Check::problem("log", format!("{error:#}"), "look at the disk and its rights")],
                None,
            );
        }
    };
    let damage = match offline::damage(pipeline, &reader, &recovery, store).await {
        Ok(damage) => damage,
        Err(error) => {
            let advice = "look at the disk and its rights";
            return (
                vec![Check::problem("log", format!("its damage cannot be told: {error:#}"), advice)],
                Some(reader.end_offset()),
            );
        }
    };
    let mut checks = of_damage(&damage);
    let quarantine = folder.quarantine();
    let aside = fs::read_dir(&quarantine).map_or(0, Iterator::count);
    if aside > 0 {
        let found = format!("{aside} files were put aside in {}", quarantine.display());
        let advice =
            "remove them when `thalweg segments repair` has seen to them and they are of no other use";
        checks.push(Check::warning("log", found, advice));
    }
    let strangers = strangers(folder.path());
    if let Some(first) = strangers.first() {
        let found = format!("{} files are no part of a log, such as {first}", strangers.len());
        checks.push(Check::warning("log", found, "they do no harm; move them elsewhere"));
    }
    if checks.is_empty() {
        let segments = reader.segments().len();
        let (start, end) = (reader.start_offset(), reader.end_offset());
        checks.push(Check::ok("log", format!("offsets {start}..{end} in {segments} segments, no damage")));
    }
    (checks, Some(reader.end_offset()))
}

/// What is damaged, each with what to do; and what is lost for good, in one.
fn of_damage(damage: &[Damage]) -> Vec<Check> {
    let open = damage.iter().filter(|damage| damage.settled_ms.is_none());
    let mut checks: Vec<Check> = open
        .map(|damage| {
            let advice = match damage.kind {
                DamageKind::Unreadable => {
                    "look at the disk and at the rights of the file; then `thalweg segments repair`"
                }
                _ => {
                    "look at the disk; then stop the daemon and run `thalweg segments repair`, \
                     which saves what can be proven and says what is lost"
                }
            };
            Check::problem("log", damage.to_string(), advice)
        })
        .collect();
    let settled: Offsets =
        damage.iter().filter(|damage| damage.is_lost_for_good()).map(Damage::offsets).collect();
    if settled.count() > 0 {
        let found = format!("{} offsets are lost for good", count(settled.count()));
        let advice = "`thalweg segments list` names them; producers may have to send these again";
        checks.push(Check::warning("log", found, advice));
    }
    checks
}

/// Files in the folder of a stream that are no part of its log. Files being
/// published end in `.tmp`.
fn strangers(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let known = |name: &str| {
        segment_name(name).is_some()
            || matches!(name, "LOCK" | "quarantine")
            || name.strip_prefix("spare.").is_some_and(|n| n.parse::<usize>().is_ok())
            || name.ends_with(durable::TEMPORARY_SUFFIX)
    };
    let mut strangers: Vec<String> = names.filter(|name| !known(name)).collect();
    strangers.sort_unstable();
    strangers
}

async fn look(pipeline: &Pipeline, store: &Store, end_offset: Option<u64>) -> anyhow::Result<Vec<Check>> {
    let version = store.schema_version().await?;
    let mut checks = vec![Check::ok("store", format!("opens, schema version {version}"))];
    if let Some(checkpoint) = store.counts(&pipeline.name, &pipeline.stream).await? {
        // A daemon may have derived more since the log was looked at.
        let end_offset = match end_offset {
            Some(end) if checkpoint.next_offset > end => {
                offline::log(pipeline).ok().map(|(log, _)| log.end_offset())
            }
            end => end,
        };
        checks.push(conservation(&checkpoint, end_offset));
    }
    checks.push(objects(pipeline, store).await?);
    let newest = store.segments(&pipeline.stream).await?.iter().map(|row| row.sealed_at_ms).max();
    let ahead_ms = newest.unwrap_or(0) - clock::system_ms();
    if ahead_ms > 60_000 {
        let found = format!("the newest segment was sealed {} s in the future", ahead_ms / 1_000);
        checks.push(Check::problem("clock", found, "set the clock; it was ahead then, or is behind now"));
    }
    Ok(checks)
}

fn conservation(checkpoint: &Checkpoint, end_offset: Option<u64>) -> Check {
    let Checkpoint { start_offset, next_offset, .. } = *checkpoint;
    let read = next_offset.saturating_sub(start_offset);
    let found = format!(
        "{} read = {} indexed + {} rejected + {} deduplicated + {} deferred + {} dead-lettered + {} lost",
        count(read),
        count(checkpoint.indexed),
        count(checkpoint.rejected),
        count(checkpoint.deduplicated),
        count(checkpoint.deferred),
        count(checkpoint.dead_lettered),
        count(checkpoint.lost)
    );
    if !checkpoint.is_conserved() {
        let advice = "records are unaccounted for: keep log and store as they are, and run `thalweg replay`";
        return Check::problem("conservation", format!("this does not add up: {found}"), advice);
    }
    match end_offset {
        Some(end) if next_offset > end => Check::problem(
            "conservation",
            format!("derived up to offset {next_offset}, but the log ends at {end}"),
            "the log lost its end, or is another one: put back the log that belongs to this store, \
             or start the daemon, which goes on after what is gone",
        ),
        Some(end) => Check::ok("conservation", format!("{found}; {} in flight", count(end - next_offset))),
        None if next_offset > 0 => Check::problem(
            "conservation",
            format!("derived up to offset {next_offset}, but there is no log"),
            "put back the log that belongs to this store",
        ),
        None => Check::ok("conservation", found),
    }
}

/// Whether each row has an object of its size; `thalweg artifacts verify`
/// reads them.
async fn objects(pipeline: &Pipeline, store: &Store) -> anyhow::Result<Check> {
    if let Some(url) = &pipeline.artifacts.url {
        let found = format!("in {url}: see `--connect`, and `thalweg artifacts check`");
        return Ok(Check::ok("artifacts", found));
    }
    let folder = pipeline.in_data_dir(pipeline.artifacts.path.as_ref());
    let rows = store.artifacts().await?;
    let lacking: Vec<_> = rows
        .iter()
        .filter(|row| fs::metadata(folder.join(&row.location)).map_or(true, |meta| meta.len() != row.bytes))
        .map(|row| row.location.as_str())
        .collect();
    Ok(match lacking.first() {
        None => Check::ok("artifacts", format!("{} rows, each with its object", rows.len())),
        Some(first) => Check::problem(
            "artifacts",
            format!(
                "{} of {} objects are missing or of the wrong size, such as {first}",
                lacking.len(),
                rows.len()
            ),
            "`thalweg artifacts verify` names them all; put them back from a copy",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_checkpoint_must_add_up_and_lie_within_the_log() {
        let good =
            Checkpoint { start_offset: 2, next_offset: 10, indexed: 7, rejected: 1, ..Checkpoint::default() };
        assert_eq!(conservation(&good, Some(10)).verdict, Verdict::Ok);
        assert_eq!(conservation(&good, Some(12)).found.split("; ").last(), Some("2 in flight"));
        assert_eq!(conservation(&good, Some(9)).verdict, Verdict::Problem);
        assert_eq!(conservation(&good, None).verdict, Verdict::Problem);
        let bad = Checkpoint { indexed: 6, ..good };
        assert_eq!(conservation(&bad, Some(10)).verdict, Verdict::Problem);
        assert_eq!(conservation(&Checkpoint::default(), None).verdict, Verdict::Ok);
    }
}
