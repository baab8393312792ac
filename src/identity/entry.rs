//! What the trail says of an act.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Principal, Scheme};

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
}

/// An act, as the trail keeps it. Names of tenants are no part of it, nor
/// what was shown as credentials: the trail outlives both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Whose act: [`Principal::id`], or `unknown`.
    pub principal: Arc<str>,
    /// How they proved who they are.
    pub scheme: Scheme,
    /// What they did: `keys.create`.
    pub act: Cow<'static, str>,
    /// What it was done to: a key's id, a job's number; may be empty.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The particulars; of a refusal its code.
    pub detail: String,
    /// Where they came from: an address, with or without a port.
    pub peer: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
}

/// A row of the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailRow {
    /// Its number; later rows have higher ones.
    pub id: i64,
    /// What happened, the first time.
    pub entry: Entry,
    /// How often, where the same was refused again and again.
    pub times: u64,
    /// The last time, in milliseconds since the Unix epoch.
    pub last_ms: i64,
}

impl Entry {
    /// An act of `principal` that was done.
    pub fn done(at_ms: i64, principal: &Principal, act: &'static str, subject: impl Into<String>) -> Self {
        Self::new(at_ms, principal, act, subject.into(), Outcome::Done)
    }

    /// An act of `principal` that was refused, with the refusal's `code`.
    pub fn refused(
        at_ms: i64,
        principal: &Principal,
        act: impl Into<Cow<'static, str>>,
        code: impl Into<String>,
    ) -> Self {
        Self { detail: code.into(), ..Self::new(at_ms, principal, act, String::new(), Outcome::Refused) }
    }

    /// An act of somebody who is not known, refused with `code`.
    pub fn unknown(at_ms: i64, act: impl Into<Cow<'static, str>>, code: impl Into<String>) -> Self {
        Self {
            at_ms,
            principal: "unknown".into(),
            scheme: Scheme::Open,
            act: act.into(),
            subject: String::new(),
            outcome: Outcome::Refused,
            detail: code.into(),
            peer: None,
            request_id: None,
        }
    }

    fn new(
        at_ms: i64,
        principal: &Principal,
        act: impl Into<Cow<'static, str>>,
        subject: String,
        outcome: Outcome,
    ) -> Self {
        Self {
            at_ms,
            principal: principal.id.clone(),
            scheme: principal.scheme,
            act: act.into(),
            subject,
            outcome,
            detail: String::new(),
            peer: None,
            request_id: None,
        }
    }
}

impl Outcome {
    /// The stored name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }

    /// The outcome of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Done, Self::Refused].into_iter().find(|outcome| outcome.name() == name)
    }
}
