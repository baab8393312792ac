//! What a pipeline keeps: log, store, artifacts.

use std::fs;

use super::Check;
use crate::{
    cli::{offline, output::count},
    clock,
    config::Pipeline,
    store::{Checkpoint, Store},
};

/// Looks at everything that is there; what is not there yet is fine.
pub(super) async fn check(pipeline: &Pipeline) -> Vec<Check> {
    let (mut checks, end_offset) = log(pipeline);
    match offline::find_store(pipeline).await {
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
fn log(pipeline: &Pipeline) -> (Vec<Check>, Option<u64>) {
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
    let mut checks = Vec::new();
    for damage in &recovery.damage {
        let found = format!(
            "{}: offsets {}..{} are lost (file bytes {}..{})",
            damage.path.display(),
            damage.first_offset,
            damage.next_offset,
            damage.from,
            damage.to
        );
        checks.push(Check::problem("log", found, "look at the disk; producers may have to send these again"));
    }
    for file in &recovery.quarantined {
        let advice = "`thalweg segments verify` tells what of it can be read; its artifact may be intact";
        checks.push(Check::problem("log", format!("{} cannot be read", file.display()), advice));
    }
    let quarantine = folder.path().join("quarantine");
    let aside = fs::read_dir(&quarantine).map_or(0, Iterator::count);
    if aside > 0 {
        let found = format!("{aside} files were put aside in {}", quarantine.display());
        checks.push(Check::warning("log", found, "look at them; remove them when they are of no use"));
    }
    if checks.is_empty() {
        let segments = reader.segments().len();
        let (start, end) = (reader.start_offset(), reader.end_offset());
        checks.push(Check::ok("log", format!("offsets {start}..{end} in {segments} segments, no damage")));
    }
    (checks, Some(reader.end_offset()))
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
            "the log lost its end, or is another one: put back the log that belongs to this store",
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
