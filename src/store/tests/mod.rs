//! The store from outside, each test with a file of its own.

mod commit;
mod measure;
mod retrieval;

use crate::embed::Space;
use crate::record::Tier;

use super::*;

struct Fixture {
    store: Store,
    space_key: i64,
    // Removed when dropped, so it must outlive the store.
    directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store.sqlite")).await.unwrap();
        let space_key = store.register_space(&space(4), 0).await.unwrap();
        Self { store, space_key, directory }
    }

    async fn again(&self) -> Store {
        Store::open(&self.directory.path().join("store.sqlite")).await.unwrap()
    }

    async fn lease(&self) -> Lease {
        self.store.acquire("p", "s", 0, 1).await.unwrap()
    }

    fn batch(&self, from: u64, records: Vec<RecordRow>) -> Batch {
        Batch {
            from,
            to: from + records.len() as u64,
            batch_tag: "batch-1".into(),
            space_key: self.space_key,
            config_digest: "c0".into(),
            records,
            now_ms: 2,
            ..Batch::default()
        }
    }

    /// Stores `records` from offset 0 on.
    async fn filled(records: Vec<RecordRow>) -> Self {
        let fixture = Self::new().await;
        let mut lease = fixture.lease().await;
        let batch = fixture.batch(0, records);
        fixture.store.commit(&mut lease, batch).await.unwrap();
        fixture
    }

    fn query(&self, tenant: &str, text: &str) -> Query {
        Query { tenant: tenant.into(), text: text.into(), space_key: self.space_key, ..Query::default() }
    }
}

fn space(dimensions: usize) -> Space {
    Space {
        provider: "test".into(),
        model: "model-1".into(),
        revision: "r1".into(),
        tokenizer: String::new(),
        dimensions,
        pooling: "mean".into(),
        normalised: true,
        prefix: String::new(),
        element: "fp32".into(),
        max_tokens: 256,
    }
}

fn record(offset: u64, tenant: &str, text: &str, vector: Option<Vec<f32>>) -> RecordRow {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&offset.to_be_bytes());
    RecordRow {
        offset,
        record_id: Some(format!("id-{offset}")),
        ts_ms: 1_000 + offset.cast_signed(),
        tenant: tenant.into(),
        session: None,
        source: "test".into(),
        tier: Tier::Event,
        attrs: "{}".into(),
        dedupe_key: None,
        chunks: vec![ChunkRow {
            chunk: 0,
            start: 0,
            end: text.len(),
            tokens: 3,
            text: text.into(),
            digest,
            vector,
        }],
    }
}

fn texts(answer: &Answer) -> Vec<&str> {
    answer.hits.iter().map(|hit| hit.text.as_str()).collect()
}
