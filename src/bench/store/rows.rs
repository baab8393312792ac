//! Rows to load: real texts, made-up vectors.

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::Options;
use crate::{
    bench::data::Corpus,
    embed::Space,
    pipeline::batching,
    record::Tier,
    store::{Batch, ChunkRow, RecordRow},
};

/// Dimensions of the vectors.
pub(super) const DIMENSIONS: usize = 384;
/// Records of one commit, as deriving makes them of a log that is far ahead.
pub(super) const COMMIT: usize = batching::MOST;
/// Groups that the vectors lie in.
const GROUPS: u64 = 1_000;

/// Rows without end.
pub(super) struct Rows {
    texts: Vec<String>,
    centres: Vec<Vec<f32>>,
}

impl Rows {
    /// With the texts of the fixtures.
    pub fn new(options: &Options) -> Result<Self> {
        let names = ["irc_ubuntu", "scifact_docs", "python311"];
        let texts: Vec<String> = Corpus::load_all(&options.fixtures, &names)?
            .texts()?
            .into_iter()
            .map(|text| text.chars().take(1_000).collect())
            .collect();
        ensure!(!texts.is_empty(), "the fixtures hold no texts");
        let centres = (0..GROUPS).map(|group| Random::new(group ^ 0x5eed).vector()).collect();
        Ok(Self { texts, centres })
    }

    /// A vector near a group's centre.
    pub fn vector(&self, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed.wrapping_add(1));
        let centre = usize::try_from(random.next() % GROUPS).ok().and_then(|at| self.centres.get(at));
        let noise = random.vector();
        let mixed: Vec<f32> =
            centre.into_iter().flatten().zip(&noise).map(|(centre, noise)| centre + 0.7 * noise).collect();
        let length = mixed.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        mixed.iter().map(|x| x / length).collect()
    }

    /// The record at `offset`, of one of `tenants` tenants.
    pub fn record(&self, offset: u64, tenants: u64) -> RecordRow {
        let at = usize::try_from(offset).unwrap_or(0) % self.texts.len().max(1);
        let text = self.texts.get(at).cloned().unwrap_or_default();
        let digest = Sha256::new().chain_update(offset.to_be_bytes()).chain_update(&text).finalize().into();
        RecordRow {
            offset,
            record_id: Some(format!("record-{offset}")),
            ts_ms: 1_700_000_000_000 + offset.cast_signed(),
            tenant: format!("tenant-{}", offset % tenants),
            session: Some(format!("session-{}", offset % 1_000)),
            source: "bench".into(),
            tier: Tier::Doc,
            attrs: "{}".into(),
            dedupe_key: None,
            chunks: vec![ChunkRow {
                chunk: 0,
                start: 0,
                end: text.len(),
                tokens: text.len() / 4,
                text,
                digest,
                vector: Some(self.vector(offset)),
            }],
        }
    }

    /// The records `from..to` as one batch.
    pub fn batch(&self, from: u64, to: u64, tenants: u64, space_key: i64) -> Batch {
        Batch {
            from,
            to,
            batch_tag: "bench".into(),
            space_key,
            config_digest: "bench".into(),
            records: (from..to).map(|offset| self.record(offset, tenants)).collect(),
            ..Batch::default()
        }
    }
}

/// The space of the made-up vectors.
pub(super) fn space() -> Space {
    Space {
        provider: "bench".into(),
        model: "made-up".into(),
        revision: "1".into(),
        tokenizer: String::new(),
        dimensions: DIMENSIONS,
        pooling: "none".into(),
        normalised: true,
        prefix: String::new(),
        element: "fp32".into(),
        max_tokens: 256,
    }
}

/// A small generator.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Numbers about 0, nearly as a normal distribution gives them.
    #[expect(clippy::cast_precision_loss, reason = "16 bits at a time")]
    fn vector(&mut self) -> Vec<f32> {
        let number = |bits: u64| {
            let parts = (0..4).map(|part| (bits >> (16 * part) & 0xffff) as f32 / 65_536.0 - 0.5);
            parts.sum::<f32>()
        };
        (0..DIMENSIONS).map(|_| number(self.next())).collect()
    }
}
