//! LoCoMo: long conversations of two people, and questions about them.
//!
//! Each conversation is a tenant, each turn an event record. What is indexed
//! of a turn is what a chat would show: who speaks, the words, and the caption
//! of a picture that is shared. The summaries that come with the data are left
//! out: they are written by a model that had read the whole session.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use super::dataset::{Dataset, Question, lines};

/// Name of the file in the data folder.
pub const FILE: &str = "locomo_dev.jsonl.zst";

/// Questions of category 5 have no answer in the conversation.
const ANSWERABLE: std::ops::RangeInclusive<u8> = 1..=4;

#[derive(Deserialize)]
#[serde(tag = "k", rename_all = "lowercase")]
enum Line {
    Turn(Turn),
    Qa(Qa),
    Conv {},
    Session {},
}

#[derive(Deserialize)]
struct Turn {
    conv: String,
    session: u32,
    id: String,
    ts: String,
    user: String,
    text: String,
    image_caption: Option<String>,
}

#[derive(Deserialize)]
struct Qa {
    conv: String,
    cat: u8,
    q: String,
    ev: Vec<String>,
}

/// All turns, and the answerable questions whose evidence is known.
pub fn load(data: &Path) -> Result<Dataset> {
    let (mut records, mut questions) = (Vec::new(), Vec::new());
    for line in lines(&data.join(FILE))? {
        match line {
            Line::Turn(turn) => records.push(record(&turn)),
            Line::Qa(qa) if ANSWERABLE.contains(&qa.cat) && !qa.ev.is_empty() => questions.push(question(qa)),
            Line::Qa(_) | Line::Conv {} | Line::Session {} => {}
        }
    }
    Ok(Dataset { name: "LoCoMo", records, questions })
}

/// The text of each turn, as it is indexed.
pub fn turns(data: &Path) -> Result<Vec<String>> {
    let text = |record: Value| record.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(load(data)?.records.into_iter().map(text).collect())
}

/// Turn ids repeat from conversation to conversation; with the conversation
/// in front, a hit of somebody else's cannot pass for one's own.
fn unique(conversation: &str, turn: &str) -> String {
    format!("{conversation}/{turn}")
}

fn record(turn: &Turn) -> Value {
    let shared = turn.image_caption.as_ref().map(|caption| format!(" [shares {caption}]"));
    json!({
        "id": unique(&turn.conv, &turn.id),
        "tenant": turn.conv,
        "session": format!("{}/{}", turn.conv, turn.session),
        // The data gives local times without a zone.
        "ts": format!("{}Z", turn.ts),
        "source": "locomo",
        "tier": "event",
        "text": format!("{}: {}{}", turn.user, turn.text, shared.unwrap_or_default()),
        "user": turn.user,
    })
}

fn question(qa: Qa) -> Question {
    Question {
        relevant: qa.ev.iter().map(|turn| (unique(&qa.conv, turn), 1.0)).collect(),
        tenant: qa.conv,
        text: qa.q,
    }
}
