//! Rows, outcomes and checkpoint: all or nothing, and conserved.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

conformance! {
    a_fenced_lease_cannot_commit_and_leaves_nothing_behind,
    a_failing_row_rolls_back_rows_and_checkpoint,
    vectors_that_cannot_be_compared_are_refused,
    a_batch_must_start_at_the_checkpoint,
    a_dead_letter_is_kept_for_each_failed_offset_and_redriven_once,
    dead_letters_are_listed_by_pipeline_and_without_their_payloads,
    two_handles_on_one_file_see_each_other_and_take_turns,
    what_is_known_of_contents_names_their_holder,
    replay_adds_only_what_is_missing_and_settles_what_was_deferred,
    every_offset_is_accounted_for_after_every_commit,
}

async fn rows(store: &Store) -> Vec<TableCount> {
    store.inventory().await.unwrap()
}

fn outcome(offset: u64, kind: OutcomeKind) -> OutcomeRow {
    OutcomeRow { offset, kind, reason: "rule".into(), detail: "why".into() }
}

async fn a_fenced_lease_cannot_commit_and_leaves_nothing_behind(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut old = fixture.lease().await;
    let mut new = fixture.lease().await;
    let before = rows(&fixture.store).await;
    let batch = fixture.batch(0, vec![record(0, "a", "water", Some(vec![1.0, 0.0, 0.0, 0.0]))]);
    let error = fixture.store.commit(&mut old, batch.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { epoch: 1, .. }), "{error}");
    assert_eq!(rows(&fixture.store).await, before);
    fixture.store.commit(&mut new, batch).await.unwrap();
    assert_eq!(new.checkpoint().next_offset, 1);
}

async fn a_failing_row_rolls_back_rows_and_checkpoint(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let mut claimed = record(0, "a", "water", Some(vec![1.0, 0.0, 0.0, 0.0]));
    claimed.dedupe_key = Some([7; 32]);
    fixture.store.commit(&mut lease, fixture.batch(0, vec![claimed.clone()])).await.unwrap();
    let (before, checkpoint) = (rows(&fixture.store).await, lease.checkpoint());

    let twice = RecordRow { offset: 2, ..claimed.clone() };
    let batch = fixture.batch(1, vec![record(1, "b", "stone", Some(vec![0.0, 1.0, 0.0, 0.0])), twice]);
    let error = fixture.store.commit(&mut lease, batch).await.unwrap_err();
    assert!(matches!(error, StoreError::Duplicate { count: 1 }), "{error}");

    let mut same_chunk = record(1, "b", "stone", None);
    same_chunk.chunks.push(same_chunk.chunks[0].clone());
    let error = fixture.store.commit(&mut lease, fixture.batch(1, vec![same_chunk])).await.unwrap_err();
    assert!(matches!(error, StoreError::Database { doing: "writing chunks", .. }), "{error}");

    assert_eq!(rows(&fixture.store).await, before);
    assert_eq!(fixture.store.counts("p", "s").await.unwrap(), Some(checkpoint));
    let good = fixture.batch(1, vec![record(1, "b", "stone", None)]);
    fixture.store.commit(&mut lease, good).await.unwrap();
}

async fn vectors_that_cannot_be_compared_are_refused(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    for (vector, said) in
        [(vec![1.0, 0.0], "2 numbers"), (vec![f32::NAN, 0.0, 0.0, 1.0], "not finite"), (vec![0.0; 4], "zero")]
    {
        let batch = fixture.batch(0, vec![record(0, "a", "water", Some(vector))]);
        let error = fixture.store.commit(&mut lease, batch).await.unwrap_err();
        assert!(matches!(&error, StoreError::Vector { .. }) && error.to_string().contains(said), "{error}");
    }
    let mut batch = fixture.batch(0, vec![record(0, "a", "water", Some(vec![1.0; 4]))]);
    batch.space_key = 99;
    let error = fixture.store.commit(&mut lease, batch).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownSpace { space_key: 99 }), "{error}");
}

async fn a_batch_must_start_at_the_checkpoint(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let error = fixture.store.commit(&mut lease, fixture.batch(5, vec![record(5, "a", "x", None)])).await;
    assert!(matches!(error, Err(StoreError::Unbalanced { from: 5, .. })));
}

async fn a_dead_letter_is_kept_for_each_failed_offset_and_redriven_once(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let mut batch = fixture.batch(0, Vec::new());
    batch.to = 1;
    batch.outcomes.push(outcome(0, OutcomeKind::DeadLettered));
    fixture.store.commit(&mut lease, batch).await.unwrap();
    let open = fixture.store.dead_letters(Some(DeadLetterState::Open), 0, 10).await.unwrap();
    assert_eq!((open.len(), open[0].letter.offset, open[0].letter.code.as_str()), (1, Some(0), "rule"));
    assert!(fixture.store.mark_redriven(open[0].id, 9).await.unwrap());
    assert!(!fixture.store.mark_redriven(open[0].id, 9).await.unwrap());
    assert!(fixture.store.dead_letters(Some(DeadLetterState::Open), 0, 10).await.unwrap().is_empty());
    let letter = fixture.store.dead_letter(open[0].id).await.unwrap().unwrap();
    assert_eq!((letter.state, letter.redriven_ms), (DeadLetterState::Redriven, Some(9)));
}

async fn dead_letters_are_listed_by_pipeline_and_without_their_payloads(on: Database) {
    let fixture = Fixture::new(on).await;
    for (n, pipeline) in ["ours", "theirs", "ours", "theirs"].into_iter().enumerate() {
        let payload = (n > 0).then(|| vec![0xc1; n * 1_000]);
        let letter = NewDeadLetter { pipeline: pipeline.into(), payload, ..NewDeadLetter::default() };
        fixture.store.add_dead_letter(&letter).await.unwrap();
    }
    let listed = |state| fixture.store.dead_letter_heads("ours", state, 0, 10);
    let heads = listed(None).await.unwrap();
    let sizes: Vec<_> = heads.iter().map(|head| head.payload_bytes).collect();
    assert_eq!(sizes, [0, 2_000]);
    assert!(heads.iter().all(|head| head.letter.letter.payload.is_none()));
    assert!(heads.iter().all(|head| head.letter.letter.pipeline == "ours"));
    assert!(fixture.store.mark_redriven(heads[0].letter.id, 9).await.unwrap());
    assert_eq!(listed(Some(DeadLetterState::Open)).await.unwrap(), heads[1..]);
}

async fn two_handles_on_one_file_see_each_other_and_take_turns(on: Database) {
    let fixture = Fixture::new(on).await;
    let other = fixture.again().await;
    let mut ours = fixture.store.acquire("p", "ours", 0, 1).await.unwrap();
    let mut theirs = other.acquire("p", "theirs", 0, 1).await.unwrap();
    for offset in 0..20 {
        let batch =
            || fixture.batch(offset, vec![record(offset, "a", "water", Some(vec![1.0, 0.0, 0.0, 0.0]))]);
        let (one, two) =
            tokio::join!(fixture.store.commit(&mut ours, batch()), other.commit(&mut theirs, batch()));
        one.and(two).unwrap();
    }
    let query = Query { limit: 100, ..fixture.query("a", "water") };
    assert_eq!(fixture.store.search(&query).await.unwrap().hits.len(), 40);
    assert_eq!(other.search(&query).await.unwrap().hits.len(), 40);
}

async fn what_is_known_of_contents_names_their_holder(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let records = (0..70).map(|offset| RecordRow {
        dedupe_key: Some([offset as u8; 32]),
        ..record(offset, "a", "water", None)
    });
    fixture.store.commit(&mut lease, fixture.batch(0, records.collect())).await.unwrap();
    let known = fixture.store.known(&[[3; 32], [69; 32], [200; 32]]).await.unwrap();
    assert_eq!(known.len(), 2);
    assert_eq!(known[&[69; 32]], ("s".to_string(), 69));
}

async fn replay_adds_only_what_is_missing_and_settles_what_was_deferred(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let unit = || Some(vec![0.0, 1.0, 0.0, 0.0]);
    let mut batch = fixture.batch(0, vec![record(0, "a", "water", unit()), record(1, "a", "stone", None)]);
    batch.outcomes = vec![outcome(1, OutcomeKind::Deferred), outcome(2, OutcomeKind::Rejected)];
    batch.to = 3;
    fixture.store.commit(&mut lease, batch).await.unwrap();

    let mut differing = record(0, "a", "water", unit());
    differing.chunks[0].digest = [9; 32];
    let replay = fixture.batch(0, vec![differing]);
    assert_eq!(
        fixture.store.put_missing("p", "s", replay).await.unwrap(),
        Replayed { differing: 1, ..Replayed::default() }
    );

    let all = (0..4).map(|offset| record(offset, "a", "again", unit())).collect();
    let replayed = fixture.store.put_missing("p", "s", fixture.batch(0, all)).await.unwrap();
    assert_eq!(replayed, Replayed { records: 1, vectors: 1, present: 1, differing: 0, ahead: 1 });
    let checkpoint = fixture.store.counts("p", "s").await.unwrap().unwrap();
    assert_eq!(
        (checkpoint.indexed, checkpoint.deferred, checkpoint.rejected, checkpoint.next_offset),
        (3, 0, 0, 3)
    );
    assert!(checkpoint.is_conserved());
    assert!(fixture.store.outcomes("p", "s", 0, 10).await.unwrap().is_empty());
    assert_eq!(audit::wrong(&fixture.store).await, []);

    let stored = fixture.store.stored("s", 0, 10, fixture.space_key).await.unwrap();
    assert_eq!(stored.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((stored[1].chunks[0].text.as_str(), &stored[1].chunks[0].vector), ("stone", &unit()));
    let vector = Query { vector: unit(), mode: Mode::Vector, ..fixture.query("a", "") };
    assert_eq!(fixture.store.search(&vector).await.unwrap().hits.len(), 3);
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Indexed,
    DeferredRecord,
    Outcome(OutcomeKind),
    Lost,
}

fn fates() -> impl Strategy<Value = Vec<Vec<Fate>>> {
    let fate = prop_oneof![
        4 => Just(Fate::Indexed),
        1 => Just(Fate::DeferredRecord),
        1 => Just(Fate::Outcome(OutcomeKind::Rejected)),
        1 => Just(Fate::Outcome(OutcomeKind::Deduplicated)),
        1 => Just(Fate::Outcome(OutcomeKind::Deferred)),
        1 => Just(Fate::Outcome(OutcomeKind::DeadLettered)),
        1 => Just(Fate::Lost),
    ];
    prop::collection::vec(prop::collection::vec(fate, 0..80), 1..5)
}

fn apply(batch: &mut Batch, fates: &[Fate]) {
    for (offset, fate) in (batch.from..).zip(fates) {
        batch.to = offset + 1;
        match fate {
            Fate::Indexed => batch.records.push(record(offset, "a", "water", Some(vec![1.0; 4]))),
            Fate::DeferredRecord => {
                batch.records.push(record(offset, "a", "water", None));
                batch.outcomes.push(outcome(offset, OutcomeKind::Deferred));
            }
            Fate::Outcome(kind) => batch.outcomes.push(outcome(offset, *kind)),
            Fate::Lost => batch.lost += 1,
        }
    }
}

async fn every_offset_is_accounted_for_after_every_commit(on: Database) {
    let cases = if matches!(on, Database::Sqlite) { 12 } else { 3 };
    let run = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = ProptestConfig { cases, ..ProptestConfig::default() };
        TestRunner::new(config).run(&(fates(), 0u64..1_000), |(batches, start)| {
            runtime.block_on(accounts_for(on.clone(), &batches, start));
            Ok(())
        })
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap();
}

async fn accounts_for(on: Database, batches: &[Vec<Fate>], start: u64) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.store.acquire("p", "s", start, 1).await.unwrap();
    let (mut next, mut records, mut outcomes) = (start, 0, 0);
    for fates in batches {
        let mut batch = fixture.batch(next, Vec::new());
        apply(&mut batch, fates);
        (next, records, outcomes) =
            (batch.to, records + batch.records.len(), outcomes + batch.outcomes.len());
        fixture.store.commit(&mut lease, batch).await.unwrap();
        let stored = fixture.store.counts("p", "s").await.unwrap().unwrap();
        assert_eq!(stored, lease.checkpoint());
        assert!(stored.is_conserved() && stored.next_offset == next, "{stored:?}");
    }
    let stored = fixture.store.stored("s", 0, u64::MAX >> 1, fixture.space_key).await.unwrap();
    assert_eq!(stored.len(), records);
    assert_eq!(fixture.store.outcomes("p", "s", 0, u64::MAX >> 1).await.unwrap().len(), outcomes);
    assert_eq!(audit::wrong(&fixture.store).await, []);
}
