//! What is counted for an audit, and that it adds up whatever was written.

use crate::pipeline::audit::judge;

use super::*;

conformance! {
    what_is_stored_is_counted_by_what_became_of_it,
    a_stream_that_was_never_read_has_nothing_to_count,
}

/// Every law that does not hold for `p` in `s`.
pub(super) async fn wrong(store: &Store) -> Vec<crate::pipeline::audit::Law> {
    let counted = store.counted("p", "s").await.unwrap().unwrap();
    judge(&counted, None).into_iter().filter(|law| !law.ok).collect()
}

fn unit() -> Option<Vec<f32>> {
    Some(vec![1.0, 0.0, 0.0, 0.1])
}

async fn what_is_stored_is_counted_by_what_became_of_it(on: Database) {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.store.acquire("p", "s", 5, 1).await.unwrap();
    let outcome = |offset, kind| OutcomeRow { offset, kind, reason: "r".into(), detail: String::new() };
    let records = vec![record(5, "a", "river", unit()), record(6, "b", "delta", None)];
    let batch = Batch {
        to: 11,
        lost: 3,
        outcomes: vec![outcome(6, OutcomeKind::Deferred), outcome(8, OutcomeKind::Rejected)],
        ..fixture.batch(5, records)
    };
    fixture.store.commit(&mut lease, batch).await.unwrap();
    let mut other = fixture.store.acquire("p", "other", 0, 1).await.unwrap();
    fixture.store.commit(&mut other, fixture.batch(0, vec![record(0, "a", "sea", None)])).await.unwrap();

    let counted = fixture.store.counted("p", "s").await.unwrap().unwrap();
    assert_eq!(counted.checkpoint, lease.checkpoint());
    assert_eq!(counted.lost, [7..8, 9..11]);
    let rows = RowCounts { records: 2, chunks: 3, ranked: 3, ..RowCounts::default() };
    assert_eq!((counted.rows, counted.has_live_space), (rows, true), "what is deferred may lack its vectors");
    let count = |kind, with_record| OutcomeCount { kind, outcomes: 1, with_record };
    let mut outcomes = counted.outcomes;
    outcomes.sort_by_key(|outcome| outcome.kind);
    assert_eq!(outcomes, [count(OutcomeKind::Rejected, 0), count(OutcomeKind::Deferred, 1)]);
    assert_eq!(wrong(&fixture.store).await, []);

    // The other one's record counts as indexed and lacks its vector.
    let other = fixture.store.counted("p", "other").await.unwrap().unwrap();
    assert_eq!((other.rows.records, other.rows.without_vectors), (1, 1));
}

async fn a_stream_that_was_never_read_has_nothing_to_count(on: Database) {
    let fixture = Fixture::filled(on, vec![record(0, "a", "river", unit())]).await;
    assert_eq!(fixture.store.counted("p", "t").await.unwrap(), None);
    assert_eq!(fixture.store.counted("q", "s").await.unwrap(), None);
}
