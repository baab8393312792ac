//! The dead letters of a pipeline: in its store, or as its daemon shows them.

use anyhow::{Context, Result, bail};

use super::redrive;
use crate::{
    api::{Letter, Redrive, RedriveOutcome, Redriven},
    cli::{daemon::Daemon, offline, place::Found},
    secret::Secret,
    source::{amend::Field, client::Target},
    store::{DeadLetter, DeadLetterState, Store},
};

/// Where dead letters are.
pub(super) enum Letters {
    /// In the store, of this pipeline.
    Here { store: Store, pipeline: String },
    /// At a daemon.
    There(Daemon),
}

/// Rows read at once.
const PAGE: u32 = 1_000;
/// More would neither be read nor fit into memory for sure.
const MOST: usize = 100_000;
/// Dead letters that a daemon is asked to send again at once: it does so
/// within the time of one request, or leaves some.
const AT_ONCE: usize = 100;

impl Letters {
    /// Opens them.
    pub async fn open(found: Found) -> Result<Self> {
        Ok(match found {
            Found::There(daemon) => Self::There(daemon),
            Found::Here(pipeline) => {
                Self::Here { store: offline::store(&pipeline).await?, pipeline: pipeline.name.clone() }
            }
        })
    }

    /// Those that wait, or `all`, without their bytes.
    pub async fn list(&self, all: bool) -> Result<Vec<Letter>> {
        let letters = match self {
            Self::Here { store, pipeline } => {
                every((store, pipeline), (!all).then_some(DeadLetterState::Open)).await?
            }
            Self::There(daemon) => {
                let of = [("all", Some(all.to_string()))];
                daemon.list("/api/v1/dead-letters", &of, None, MOST + 1).await?.items
            }
        };
        if letters.len() > MOST {
            bail!(
                "there are over {MOST} dead letters; mend the producer first, and send some by their number"
            );
        }
        Ok(letters)
    }

    /// One with its bytes.
    pub async fn show(&self, id: i64) -> Result<Letter> {
        match self {
            Self::Here { store, pipeline } => Ok(one((store, pipeline), id).await?.into()),
            Self::There(daemon) => daemon.get(&format!("/api/v1/dead-letters/{id}")).await,
        }
    }

    /// Sends these again: from here to a source of the pipeline, or has the
    /// daemon do so.
    pub async fn redrive(
        &self,
        ids: Vec<i64>,
        to: (Target, Option<Secret>),
        set: &[Field],
    ) -> Result<Vec<RedriveOutcome>> {
        let mut outcomes = Vec::with_capacity(ids.len());
        match self {
            Self::Here { store, pipeline } => {
                let mut letters = Vec::with_capacity(ids.len());
                for id in ids {
                    letters.push(one((store, pipeline), id).await?);
                }
                outcomes = redrive::redrive(store, letters, to, set).await?;
            }
            Self::There(daemon) => {
                let set = set.iter().map(Field::parts).collect();
                let mut asked = Redrive { ids: Vec::new(), set };
                let mut failed = None;
                for ids in ids.chunks(AT_ONCE) {
                    if failed.is_some() {
                        let why = || Some("one before it failed".to_owned());
                        outcomes.extend(ids.iter().map(|id| redrive::outcome(*id, "left", why())));
                        continue;
                    }
                    asked.ids = ids.to_vec();
                    match daemon.post::<Redriven>("/api/v1/dead-letters/redrive", &asked).await {
                        Ok(done) => outcomes.extend(done.outcomes),
                        Err(error) if outcomes.is_empty() => return Err(error),
                        // What became of those before is to be told still.
                        Err(error) => {
                            let why = failed.insert(format!("{error:#}"));
                            let unanswered =
                                |id: &i64| redrive::outcome(*id, "unanswered", Some(why.clone()));
                            outcomes.extend(ids.iter().map(unanswered));
                        }
                    }
                }
            }
        }
        outcomes.sort_unstable_by_key(|outcome| outcome.id);
        Ok(outcomes)
    }

    /// Closes what was opened.
    pub async fn close(self) {
        if let Self::Here { store, .. } = self {
            store.close().await;
        }
    }
}

/// The dead letter `id` of a pipeline, in its store.
async fn one((store, pipeline): (&Store, &str), id: i64) -> Result<DeadLetter> {
    let found = store.dead_letter(id).await?.filter(|letter| letter.letter.pipeline == pipeline);
    found.with_context(|| format!("there is no dead letter {id} of the pipeline `{pipeline}`"))
}

/// The dead letters of a pipeline, in its store; no more than can be handled
/// by much.
async fn every((store, pipeline): (&Store, &str), state: Option<DeadLetterState>) -> Result<Vec<Letter>> {
    let mut letters: Vec<Letter> = Vec::new();
    loop {
        let after = letters.last().map_or(0, |letter| letter.id);
        let page = store.dead_letter_heads(pipeline, state, after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        letters.extend(page.into_iter().map(Letter::from));
        if is_last || letters.len() > MOST {
            return Ok(letters);
        }
    }
}
