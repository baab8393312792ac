//! Retrieval as a user gets it: a daemon with default settings, records sent
//! over HTTP, questions asked over HTTP.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{
    asked,
    dataset::{Dataset, Figures, TOP},
};
use crate::{
    api::Status,
    bench::daemon::{Daemon, Folder},
    pipeline::search::{SearchHit, SearchReply, SearchRequest},
    store::{Mode, fusion::Fusion},
};

/// A way to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Vectors alone.
    Vectors,
    /// Keywords alone.
    Keywords,
    /// Both, by the sum of scaled scores: what a search does by default.
    MinMax,
    /// Both, by reciprocal ranks.
    Rank,
}

impl List {
    /// Every list.
    pub const ALL: [Self; 4] = [Self::Vectors, Self::Keywords, Self::MinMax, Self::Rank];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vectors => "vectors alone",
            Self::Keywords => "keywords alone",
            Self::MinMax => "union, min-max",
            Self::Rank => "union, rank",
        }
    }

    fn request(self, tenant: &str, query: &str) -> SearchRequest {
        let (mode, fusion) = match self {
            Self::Vectors => (Mode::Vector, None),
            Self::Keywords => (Mode::Keyword, None),
            Self::MinMax => (Mode::Union, Some(Fusion::MinMax)),
            Self::Rank => (Mode::Union, Some(Fusion::Rank)),
        };
        SearchRequest {
            tenant: Some(tenant.to_owned()),
            query: query.to_owned(),
            limit: TOP,
            tiers: Vec::new(),
            session: None,
            mode,
            fusion,
            per_record: true,
            explain: false,
        }
    }
}

/// What a dataset's questions got.
pub struct Measured {
    /// Figures of each list.
    pub figures: Vec<(List, Figures)>,
    /// Hits of another tenant than the one asked for, over all lists.
    pub foreign: u64,
    /// Hits in all.
    pub hits: u64,
    /// The daemon's own account.
    pub status: Status,
    /// What it stored.
    pub folder: Folder,
}

impl Measured {
    /// The figures of one list.
    pub fn of(&self, list: List) -> Figures {
        self.figures.iter().find(|(l, _)| *l == list).map(|(_, figures)| *figures).unwrap_or_default()
    }
}

/// Sends all records of `dataset` to a daemon and asks it every question, by
/// every list. `settings` is a piece of a pipeline file; empty for defaults.
pub async fn measure(scratch: &Path, dataset: &Dataset, settings: &str) -> Result<Measured> {
    let daemon = Daemon::start(Folder::new(scratch, settings)?)?;
    let status = asked::ingest(&daemon, &dataset.records).await?;
    let (mut figures, mut foreign, mut hits) = (Vec::new(), 0, 0);
    let owners = dataset.owners();
    for list in List::ALL {
        let requests = dataset.questions.iter().map(|q| list.request(&q.tenant, &q.text)).collect();
        let replies = asked::ask(&daemon, requests).await?;
        for (reply, question) in replies.iter().zip(&dataset.questions) {
            ensure!(
                list == List::Keywords || reply.mode != Mode::Keyword,
                "a search fell back to keywords; the model gave no vector for {:?}",
                question.text
            );
            // By what was sent, not by what the answer says of itself.
            let owner = |hit: &SearchHit| owners.get(hit.id.as_deref().unwrap_or_default()).copied();
            hits += reply.hits.len() as u64;
            foreign += reply.hits.iter().filter(|hit| owner(hit) != Some(&question.tenant)).count() as u64;
        }
        let rankings: Vec<Vec<String>> = replies.into_iter().map(ids).collect();
        figures.push((list, dataset.score(&rankings)));
    }
    let folder = daemon.stop()?;
    Ok(Measured { figures, foreign, hits, status, folder })
}

fn ids(reply: SearchReply) -> Vec<String> {
    reply.hits.into_iter().map(|hit| hit.id.unwrap_or_default()).collect()
}
