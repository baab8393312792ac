//! What is taken away is gone for good, and the counters keep their law.

use super::*;

conformance! {
    what_is_forgotten_is_in_no_table_and_counted_as_rejected,
    a_tenant_that_comes_back_has_another_key_for_every_process,
    what_was_read_before_it_was_forgotten_is_not_put_back,
    a_lost_offset_that_a_repair_brought_back_can_be_forgotten,
    keys_are_not_given_twice,
    a_renewed_segment_and_its_object_change_places_at_once,
    an_erasure_is_remembered_until_every_stream_is_done_and_then_without_names,
}

fn unit(axis: usize) -> Option<Vec<f32>> {
    let mut vector = vec![0.0; 4];
    vector[axis] = 1.0;
    Some(vector)
}

async fn rows_of(store: &Store, table: &str) -> u64 {
    store
        .inventory()
        .await
        .unwrap()
        .into_iter()
        .find(|count| count.table == table)
        .map_or(0, |count| count.rows)
}

async fn counts(store: &Store) -> Checkpoint {
    store.counts("p", "s").await.unwrap().unwrap()
}

/// Offsets 0 to 9: records of `a` at even ones and of `b` at odd ones, but for
/// 2 (rejected), 4 (a duplicate), 6 (deferred) and 8 (dead).
async fn mixed(on: Database) -> Fixture {
    let fixture = Fixture::new(on).await;
    let mut lease = fixture.lease().await;
    let outcome =
        |offset, kind| OutcomeRow { offset, kind, reason: "rule".into(), detail: "said: river".into() };
    let keyed = |offset: u64, tenant: &str, vector| RecordRow {
        dedupe_key: Some([offset as u8; 32]),
        session: Some(format!("session-{}", offset % 3)),
        ..record(offset, tenant, &format!("river {tenant} {offset}"), vector)
    };
    let mut records: Vec<RecordRow> = [0, 6].map(|n| keyed(n, "a", unit(0).filter(|_| n == 0))).into();
    records.extend([1, 3, 5, 7, 9].map(|n| keyed(n, "b", unit(1))));
    let batch = Batch {
        to: 10,
        outcomes: vec![
            outcome(2, OutcomeKind::Rejected),
            outcome(4, OutcomeKind::Deduplicated),
            outcome(6, OutcomeKind::Deferred),
            outcome(8, OutcomeKind::DeadLettered),
        ],
        ..fixture.batch(0, records)
    };
    fixture.store.commit(&mut lease, batch).await.unwrap();
    fixture
}

async fn what_is_forgotten_is_in_no_table_and_counted_as_rejected(on: Database) {
    let fixture = mixed(on).await;
    let store = &fixture.store;
    let of_a = Subject { tenant: "a".into(), session: None };
    let mut held = store.holdings(&of_a, "s", 7, 10).await.unwrap();
    held.sort_unstable();
    assert_eq!(held, [0, 6]);
    assert_eq!(store.holdings(&of_a, "s", 6, 10).await.unwrap(), [0], "only before the end");
    let in_session = Subject { session: Some("session-0".into()), ..of_a.clone() };
    assert_eq!(store.holdings(&in_session, "s", 10, 1).await.unwrap().len(), 1);
    assert_eq!(store.text_digests("s", &[0, 6, 2]).await.unwrap().len(), 2);

    let gone = store.forget("s", &[0, 2, 4, 6, 8, 12], Forgetting::Erased).await.unwrap();
    assert_eq!(gone, Forgotten { records: 2, chunks: 2, offsets: 5 });
    assert!(store.drop_empty_tenant("a").await.unwrap());
    assert!(!store.drop_empty_tenant("b").await.unwrap() && !store.drop_empty_tenant("a").await.unwrap());
    assert_eq!(store.drop_stale_claims("s").await.unwrap(), 2);
    store.scrub().await.unwrap();
    let wanted =
        Checkpoint { start_offset: 0, next_offset: 10, indexed: 5, rejected: 5, ..Checkpoint::default() };
    assert_eq!(counts(store).await, wanted);
    for (table, rows) in
        [("records", 5), ("chunks", 5), ("tenants", 1), ("dead_letters", 0), ("dedupe", 5), ("partitions", 1)]
    {
        assert_eq!(rows_of(store, table).await, rows, "{table}");
    }
    assert_eq!(store.vectors_in(fixture.space_key).await.unwrap(), 5);
    let outcomes = store.outcomes("p", "s", 0, 10).await.unwrap();
    let noted: Vec<_> =
        outcomes.iter().map(|o| (o.offset, o.kind, o.reason.as_str(), o.detail.as_str())).collect();
    assert_eq!(noted, [0, 2, 4, 6, 8].map(|offset| (offset, OutcomeKind::Rejected, "erased", "")));

    assert_eq!(audit::wrong(store).await, []);

    // The same again does nothing, and nobody else was touched.
    let again = store.forget("s", &[0, 2, 4, 6, 8, 12], Forgetting::Erased).await.unwrap();
    assert_eq!((again, counts(store).await), (Forgotten::default(), wanted));
    for mode in [Mode::Union, Mode::Keyword, Mode::Vector] {
        let query = |tenant| Query { mode, vector: unit(1), limit: 20, ..fixture.query(tenant, "river") };
        assert_eq!(store.search(&query("a")).await.unwrap().hits, []);
        assert_eq!(store.search(&query("b")).await.unwrap().hits.len(), 5, "{mode:?}");
    }
}

async fn a_tenant_that_comes_back_has_another_key_for_every_process(on: Database) {
    let shares_a_file = matches!(on, Database::Sqlite);
    let fixture = mixed(on).await;
    let query = Query { mode: Mode::Keyword, ..fixture.query("a", "river") };
    // Another process on the same database, which knows the tenant's key. A
    // SQLite file has one process that writes.
    let other = if shares_a_file { fixture.store.clone() } else { fixture.again().await };
    assert_eq!(other.search(&query).await.unwrap().hits.len(), 2);
    let mut theirs = other.acquire("p", "theirs", 0, 1).await.unwrap();
    let new = |offset| fixture.batch(offset, vec![record(offset, "a", "river again", unit(2))]);
    fixture.store.forget("s", &[0, 6], Forgetting::Erased).await.unwrap();
    assert!(fixture.store.drop_empty_tenant("a").await.unwrap());
    other.commit(&mut theirs, new(0)).await.unwrap();
    for store in [&other, &fixture.store] {
        let hits = store.search(&query).await.unwrap().hits;
        assert_eq!(hits.len(), 1, "{hits:?}");
        assert_eq!((hits[0].tenant.as_str(), hits[0].text.as_str()), ("a", "river again"));
    }
}

async fn what_was_read_before_it_was_forgotten_is_not_put_back(on: Database) {
    let fixture = mixed(on).await;
    let store = &fixture.store;
    store.forget("s", &[0, 6], Forgetting::Erased).await.unwrap();
    store.forget("s", &[1], Forgetting::Expired).await.unwrap();
    assert!(store.drop_empty_tenant("a").await.unwrap());
    let before = counts(store).await;
    let read =
        [(0, "a"), (1, "b"), (6, "a")].map(|(offset, tenant)| record(offset, tenant, "river", unit(0)));
    let replayed =
        store.put_missing("p", "s", Batch { to: 7, ..fixture.batch(0, read.into()) }).await.unwrap();
    assert_eq!((replayed.records, counts(store).await), (0, before));
    assert_eq!((rows_of(store, "records").await, rows_of(store, "tenants").await), (4, 1));
}

async fn a_lost_offset_that_a_repair_brought_back_can_be_forgotten(on: Database) {
    let fixture = Fixture::new(on).await;
    let (store, mut lease) = (&fixture.store, fixture.lease().await);
    let batch = Batch { to: 3, lost: 2, ..fixture.batch(0, vec![record(0, "a", "river", unit(0))]) };
    store.commit(&mut lease, batch).await.unwrap();
    store.forget("s", &[2], Forgetting::Erased).await.unwrap();
    let now = counts(store).await;
    assert_eq!((now.indexed, now.rejected, now.lost), (1, 1, 1));
}

async fn keys_are_not_given_twice(on: Database) {
    let fixture = mixed(on).await;
    let store = &fixture.store;
    let shadow = store.register_space(&Space { model: "model-2".into(), ..space(4) }, 0).await.unwrap();
    let last = store.waiting_chunks(shadow, 0, 100).await.unwrap().last().unwrap().chunk_key;
    store.forget("s", &[0, 1, 3, 5, 6, 7, 9], Forgetting::Erased).await.unwrap();
    let mut lease = fixture.lease().await;
    store.commit(&mut lease, fixture.batch(10, vec![record(10, "b", "river", unit(1))])).await.unwrap();
    let waiting = store.waiting_chunks(shadow, last, 100).await.unwrap();
    assert_eq!(waiting.len(), 1, "whoever goes along the keys meets what is new");
}

async fn a_renewed_segment_and_its_object_change_places_at_once(on: Database) {
    let fixture = Fixture::new(on).await;
    let store = &fixture.store;
    let artifact = |digest: &str| ArtifactRow {
        digest: digest.into(),
        kind: "segment".into(),
        name: "s/0".into(),
        bytes: 1,
        location: format!("segment/{digest}"),
        created_ms: 1,
        meta: "{}".into(),
    };
    let segment = |base_offset: u64, digest: &str| SegmentRow {
        stream: "s".into(),
        base_offset,
        end_offset: base_offset + 5,
        artifact: Some(digest.into()),
        ..SegmentRow::default()
    };
    for (base, digest) in [(0, "old"), (5, "other")] {
        store.put_artifact(&artifact(digest)).await.unwrap();
        store.put_segment(&segment(base, digest), &[]).await.unwrap();
    }
    store.put_artifact(&artifact("new")).await.unwrap();
    let (renewed, other) = (segment(0, "new"), segment(5, "other"));
    store.doom(&["old".into()], Some(&renewed), 7).await.unwrap();
    assert_eq!(store.segments("s").await.unwrap(), [renewed.clone(), other]);
    assert_eq!(store.doomed().await.unwrap(), [("segment/old".to_owned(), 7)]);
    store.doom(&["other".into()], None, 8).await.unwrap();
    assert_eq!(store.segments("s").await.unwrap(), [renewed]);
    // Registered again before it was deleted: it stays.
    store.put_artifact(&artifact("old")).await.unwrap();
    assert_eq!(store.doomed().await.unwrap(), [("segment/other".to_owned(), 8)]);
    store.object_deleted("segment/other").await.unwrap();
    assert!(store.doomed().await.unwrap().is_empty());
    let left: Vec<String> = store.artifacts().await.unwrap().into_iter().map(|row| row.digest).collect();
    assert_eq!(left, ["new", "old"]);
}

async fn an_erasure_is_remembered_until_every_stream_is_done_and_then_without_names(on: Database) {
    let fixture = mixed(on).await;
    let store = &fixture.store;
    // A name that PostgreSQL cannot hold as it is.
    let subject = Subject { tenant: "a\0b".into(), session: Some("s\0t".into()) };
    let id = store.ask_erasure(&subject, &["new".into()], 5).await.unwrap();
    let open = store.erasures(true).await.unwrap();
    assert_eq!((open.len(), open[0].subject.as_ref(), open[0].asked_ms), (1, Some(&subject), 5));
    let streams: Vec<&str> = open[0].streams.iter().map(|part| part.stream.as_str()).collect();
    assert_eq!(streams, ["new", "s"], "every stream that was ever read");
    store.begin_erasure(id, "s", 10).await.unwrap();
    store.begin_erasure(id, "s", 99).await.unwrap();
    store.note_erasure(id, "s", "{\"frames\":1}", None).await.unwrap();
    let open = store.erasures(true).await.unwrap().remove(0);
    let part = open.open_part("s").unwrap();
    assert_eq!((part.until_offset, part.report.as_deref()), (Some(10), Some("{\"frames\":1}")));
    for stream in ["s", "new"] {
        assert!(!store.erasures(true).await.unwrap()[0].is_everywhere());
        store.note_erasure(id, stream, "{}", Some(8)).await.unwrap();
    }
    assert!(store.erasures(true).await.unwrap()[0].is_everywhere());
    store.forget_subject(id).await.unwrap();
    assert_eq!(store.erasures(true).await.unwrap()[0].subject, None);
    store.close_erasure(id, 9).await.unwrap();
    assert!(store.erasures(true).await.unwrap().is_empty());
    assert_eq!(store.erasures(false).await.unwrap()[0].done_ms, Some(9));
}
