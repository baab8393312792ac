//! SciFact: scientific claims, and the abstracts that speak to them.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    dataset::{Dataset, Question, lines},
    ranking::Relevant,
};

#[derive(Deserialize)]
struct Claim {
    text: String,
    rel: Relevant,
}

/// All abstracts and the claims of the train split, from the fixtures.
pub fn load(fixtures: &Path) -> Result<Dataset> {
    let records: Vec<Value> = lines(&fixtures.join("scifact_docs.jsonl.zst"))?;
    let claims: Vec<Claim> = lines(&fixtures.join("scifact_queries.jsonl.zst"))?;
    let ask = |claim: Claim| Question { tenant: "library".into(), text: claim.text, relevant: claim.rel };
    Ok(Dataset { name: "SciFact", records, questions: claims.into_iter().map(ask).collect() })
}
