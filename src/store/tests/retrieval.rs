//! What searches find, and what they must not.

use super::*;

conformance! {
    no_tenant_ever_sees_another_though_all_texts_are_equal,
    tenants_whose_names_differ_only_after_a_nul_are_two,
    no_text_makes_a_search_fail,
    rows_without_a_vector_are_found_by_keyword,
    a_union_knows_both_scores_of_whatever_either_side_found,
    sessions_tiers_and_times_narrow_every_mode,
    each_record_is_shown_once_by_its_best_chunk_if_so_asked,
    lineage_names_the_segment_once_it_is_sealed,
    the_catalog_returns_what_was_put,
}

fn axis(i: usize) -> Vec<f32> {
    let mut vector = vec![0.01; 4];
    vector[i] = 1.0;
    vector
}

async fn no_tenant_ever_sees_another_though_all_texts_are_equal(on: Database) {
    let records = (0..500).map(|offset| {
        record(offset, &format!("tenant-{}", offset % 50), "the same river in every log", Some(axis(0)))
    });
    let fixture = Fixture::filled(on, records.collect()).await;
    for tenant in (0..50).map(|i| format!("tenant-{i}")) {
        for mode in [Mode::Vector, Mode::Keyword, Mode::Union] {
            let query =
                Query { vector: Some(axis(0)), mode, limit: 100, ..fixture.query(&tenant, "river log") };
            let answer = fixture.store.search(&query).await.unwrap();
            assert_eq!(answer.hits.len(), 10, "{tenant} {mode:?}");
            assert!(answer.hits.iter().all(|hit| hit.tenant == tenant), "{tenant} {mode:?}");
        }
    }
    let nobody = fixture.store.search(&fixture.query("tenant-5' OR 1=1 --", "river")).await.unwrap();
    assert!(nobody.hits.is_empty());
    let error = fixture.store.search(&fixture.query("", "river")).await.unwrap_err();
    assert!(matches!(error, StoreError::Query { .. }), "{error}");
}

async fn tenants_whose_names_differ_only_after_a_nul_are_two(on: Database) {
    let fixture =
        Fixture::filled(on, vec![record(0, "a", "river", None), record(1, "a\0b", "river", None)]).await;
    let answer = fixture.store.search(&fixture.query("a", "river")).await.unwrap();
    assert_eq!(answer.hits.iter().map(|h| h.tenant.as_str()).collect::<Vec<_>>(), ["a"]);
}

async fn no_text_makes_a_search_fail(on: Database) {
    let fixture = Fixture::filled(on, vec![record(0, "a", "river near the NOT delta", Some(axis(0)))]).await;
    let long = "river ".repeat(10_000);
    let many: String = (0..10_000).map(|i| format!("w{i} ")).collect();
    for text in [
        "",
        " ",
        "\"",
        "\"\"\"",
        "'",
        "river\"",
        "river*",
        "NEAR(river delta, 2)",
        "AND",
        "OR OR",
        "NOT",
        "river AND",
        "terms:river",
        "-river",
        "^river",
        "(",
        ")",
        "{a b}:c",
        "\0",
        "ri\0ver",
        "🌊",
        "👩‍👩‍👧‍👦 river",
        "%s%n",
        "; DROP TABLE x",
        "\u{202e}",
        "\u{feff}",
        "1k0river",
        long.as_str(),
        many.as_str(),
    ] {
        for mode in [Mode::Keyword, Mode::Union] {
            let query = Query { vector: Some(axis(0)), mode, ..fixture.query("a", text) };
            let answer = fixture.store.search(&query).await;
            assert!(answer.is_ok(), "{text:?}: {answer:?}");
        }
    }
    let answer = fixture.store.search(&fixture.query("a", "\"river\" AND (")).await.unwrap();
    assert_eq!(answer.hits.len(), 1);
}

async fn rows_without_a_vector_are_found_by_keyword(on: Database) {
    let records = vec![record(0, "a", "a sluice gate", None), record(1, "a", "a stone", Some(axis(0)))];
    let fixture = Fixture::filled(on, records).await;
    let answer = fixture.store.search(&fixture.query("a", "sluices")).await.unwrap();
    assert_eq!((answer.mode, texts(&answer)), (Mode::Keyword, vec!["a sluice gate"]));
    assert_eq!(answer.hits[0].lineage.model, None);
    let union = Query { vector: Some(axis(0)), ..fixture.query("a", "sluices") };
    let answer = fixture.store.search(&union).await.unwrap();
    assert_eq!(answer.hits.len(), 2);
    let gate = answer.hits.iter().find(|h| h.text == "a sluice gate").unwrap();
    assert!(gate.vector_score.is_none() && gate.keyword_score.is_some_and(|s| s > 0.0));
}

async fn a_union_knows_both_scores_of_whatever_either_side_found(on: Database) {
    let mut records: Vec<_> = (0..30).map(|o| record(o, "a", "silt", Some(axis(0)))).collect();
    records.push(record(30, "a", "delta", Some(axis(1))));
    let fixture = Fixture::filled(on, records).await;
    let query = Query { vector: Some(axis(0)), depth: 5, limit: 10, ..fixture.query("a", "delta silt") };
    let answer = fixture.store.search(&query).await.unwrap();
    let delta = answer.hits.iter().find(|h| h.text == "delta").unwrap();
    let expected = 0.02 + 0.0002;
    assert!((delta.vector_score.unwrap() - expected).abs() < 0.001, "{:?}", delta.vector_score);
    assert!(answer.hits.iter().all(|h| h.keyword_score.is_some() && h.vector_score.is_some()));
    let as_found = fixture.store.search(&Query { complete: false, ..query }).await.unwrap();
    let delta = as_found.hits.iter().find(|h| h.text == "delta").unwrap();
    assert_eq!(delta.vector_score, None, "five others are nearer");
}

async fn sessions_tiers_and_times_narrow_every_mode(on: Database) {
    let records: Vec<_> = (0..40)
        .map(|offset| RecordRow {
            session: (offset % 2 == 0).then(|| "even".to_string()),
            tier: if offset % 4 < 2 { Tier::Event } else { Tier::Doc },
            ..record(offset, "a", &format!("river {offset}"), Some(axis(0)))
        })
        .collect();
    let fixture = Fixture::filled(on, records).await;
    for mode in [Mode::Vector, Mode::Keyword, Mode::Union] {
        let all = Query { vector: Some(axis(0)), mode, limit: 100, ..fixture.query("a", "river") };
        let offsets = async |query: Query| {
            let answer = fixture.store.search(&query).await.unwrap();
            let mut offsets: Vec<u64> = answer.hits.iter().map(|h| h.lineage.offset).collect();
            offsets.sort_unstable();
            offsets
        };
        assert_eq!(offsets(all.clone()).await, (0..40).collect::<Vec<_>>());
        let session = Query { session: Some("even".into()), ..all.clone() };
        assert_eq!(offsets(session.clone()).await, (0..40).step_by(2).collect::<Vec<_>>());
        let doc = Query { tiers: vec![Tier::Doc], ..session };
        assert_eq!(offsets(doc.clone()).await, (2..40).step_by(4).collect::<Vec<_>>());
        let times = Query { from_ms: Some(1_010), until_ms: Some(1_020), ..all };
        assert_eq!(offsets(times).await, (10..20).collect::<Vec<_>>());
        assert_eq!(offsets(Query { from_ms: Some(1_010), until_ms: Some(1_020), ..doc }).await, [10, 14, 18]);
    }
}

async fn each_record_is_shown_once_by_its_best_chunk_if_so_asked(on: Database) {
    let mut two = record(0, "a", "river", Some(axis(0)));
    two.chunks.push(ChunkRow {
        chunk: 1,
        vector: Some(axis(1)),
        text: "river delta".into(),
        ..two.chunks[0].clone()
    });
    let fixture = Fixture::filled(on, vec![two, record(1, "a", "delta stone", Some(axis(2)))]).await;
    let query = Query { vector: Some(axis(1)), ..fixture.query("a", "river delta") };
    assert_eq!(fixture.store.search(&query).await.unwrap().hits.len(), 3);
    let answer = fixture.store.search(&Query { per_record: true, ..query }).await.unwrap();
    assert_eq!(texts(&answer), ["river delta", "delta stone"]);
    assert_eq!(answer.hits[0].lineage.chunk, 1);
}

async fn lineage_names_the_segment_once_it_is_sealed(on: Database) {
    let records: Vec<_> = (0..3).map(|o| record(o, "a", "river", Some(axis(0)))).collect();
    let fixture = Fixture::filled(on, records).await;
    let query = Query { vector: Some(axis(0)), ..fixture.query("a", "river") };
    let before = fixture.store.search(&query).await.unwrap();
    assert!(before.hits.iter().all(|h| h.lineage.segment_digest.is_none()));
    let segment = SegmentRow {
        stream: "s".into(),
        base_offset: 0,
        end_offset: 2,
        content_digest: "d1".into(),
        ..SegmentRow::default()
    };
    fixture.store.put_segment(&segment, &[]).await.unwrap();
    let after = fixture.store.search(&query).await.unwrap();
    for hit in &after.hits {
        let lineage = &hit.lineage;
        let sealed = lineage.offset < 2;
        assert_eq!(lineage.segment_digest.as_deref(), sealed.then_some("d1"));
        assert_eq!(lineage.segment_base, sealed.then_some(0));
        assert_eq!(lineage.space_id, Some(space(4).id()));
        assert_eq!(lineage.model_revision.as_deref(), Some("r1"));
        assert_eq!((lineage.batch_tag.as_str(), lineage.config_digest.as_str()), ("batch-1", "c0"));
    }
    assert_eq!(fixture.store.segment_at("s", 1).await.unwrap(), Some(segment));
    assert_eq!(fixture.store.segment_at("s", 2).await.unwrap(), None);
}

/// Directions that all differ, from a small generator.
fn scattered(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..4)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

/// SQLite's: PostgreSQL has indexes.
#[tokio::test]
async fn a_large_tenant_gets_the_same_answer_from_memory_as_from_the_database() {
    let fixture = Fixture::new(Database::Sqlite).await;
    let mut lease = fixture.lease().await;
    let settings = Settings { vector_memory: crate::units::ByteSize(0), ..Settings::default() };
    let path = fixture.directory.path().join("store.sqlite");
    let scanning = Store::open_with(&path, &settings).await.unwrap();
    let query = |seed| Query {
        vector: Some(scattered(seed)),
        mode: Mode::Vector,
        limit: 50,
        ..fixture.query("a", "")
    };
    let mut next = 0;
    for rows in [2_500, 1, 700] {
        let records = (next..next + rows).map(|o| record(o, "a", "river", Some(scattered(o + 1)))).collect();
        fixture.store.commit(&mut lease, fixture.batch(next, records)).await.unwrap();
        next += rows;
        let (held, scanned) =
            (fixture.store.search(&query(99)).await.unwrap(), scanning.search(&query(99)).await.unwrap());
        let offsets = |answer: &Answer| answer.hits.iter().map(|h| h.lineage.offset).collect::<Vec<_>>();
        assert_eq!(offsets(&held), offsets(&scanned));
        let newest = fixture.store.search(&query(next)).await.unwrap();
        assert_eq!(newest.hits[0].lineage.offset, next - 1, "the newest row must be found");
    }
    let late =
        (next..next + 2).map(|o| record(o, "a", "river", (o > next).then(|| scattered(o + 1)))).collect();
    fixture.store.commit(&mut lease, fixture.batch(next, late)).await.unwrap();
    fixture.store.search(&query(next + 1)).await.unwrap();
    let filled_in = fixture.batch(next, vec![record(next, "a", "river", Some(scattered(next + 1)))]);
    fixture.store.put_missing("p", "s", filled_in).await.unwrap();
    let answer = fixture.store.search(&query(next + 1)).await.unwrap();
    assert_eq!(answer.hits[0].lineage.offset, next, "a vector that comes late must be found");
}

async fn the_catalog_returns_what_was_put(on: Database) {
    let fixture = Fixture::new(on).await;
    let artifact = ArtifactRow {
        digest: "d1".into(),
        kind: "pack".into(),
        name: "n".into(),
        bytes: 7,
        location: "packs/d1".into(),
        created_ms: 1,
        meta: "{}".into(),
    };
    assert!(fixture.store.put_artifact(&artifact).await.unwrap());
    assert!(!fixture.store.put_artifact(&artifact).await.unwrap());
    assert_eq!(fixture.store.artifacts().await.unwrap(), [artifact]);

    let file = |path: &str, records, done| SourceProgress {
        source: "files".into(),
        path: path.into(),
        size: 10,
        mtime_ns: 5,
        records,
        done,
    };
    fixture.store.set_progress(&[file("a.jsonl", 1, false)]).await.unwrap();
    let both = [file("a.jsonl", 2, true), file("b.jsonl", 1, false)];
    fixture.store.set_progress(&both).await.unwrap();
    let mut progress = fixture.store.progress("files").await.unwrap();
    progress.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(progress, both);
    assert_eq!(fixture.store.progress("others").await.unwrap(), []);

    assert_eq!(fixture.store.register_space(&space(4), 9).await.unwrap(), fixture.space_key);
    fixture.store.set_space_state(fixture.space_key, SpaceState::Retired).await.unwrap();
    let spaces = fixture.store.spaces().await.unwrap();
    assert_eq!((spaces.len(), spaces[0].state, &spaces[0].space), (1, SpaceState::Retired, &space(4)));
    assert!(fixture.store.database_bytes().await.unwrap() >= 16_384);
}
