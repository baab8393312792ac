//! `/api/v1/dead-letters`: what could not be taken, kept to be looked at.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use super::{
    Problem, Shared, WAIT_FOR_ROOM,
    extract::{Caller, Input, Named, Params},
    page::{Page, PageOf},
};
use crate::{
    frame::Unit,
    identity::Right,
    pipeline::{Answer, Bounds, Origin},
    source::{amend::Field, redrive::mended},
    store::{DeadLetter, DeadLetterHead, DeadLetterState, StoreError},
};

/// Something that failed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// `open` or `redriven`.
    pub state: String,
    /// When it failed, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// When it was sent again, in milliseconds since the Unix epoch.
    pub redriven_ms: Option<i64>,
    /// The source it came from; empty if it came from the log.
    pub source: String,
    /// Who sent it.
    pub peer: Option<String>,
    /// The stream that it is in, if it got into the log.
    pub stream: Option<String>,
    /// Where it is in that stream.
    pub offset: Option<u64>,
    /// Number of the frame within its connection, file or request, from 0.
    pub frame: Option<u64>,
    /// Byte at which it began there.
    pub byte: Option<u64>,
    /// A short, stable code.
    pub code: String,
    /// The particulars, for people.
    pub message: String,
    /// Bytes that are kept of it.
    pub payload_bytes: u64,
    /// Those bytes in base64; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

impl From<DeadLetter> for Letter {
    fn from(letter: DeadLetter) -> Self {
        let DeadLetter { id, letter, state, redriven_ms } = letter;
        Self {
            id,
            state: state.as_str().to_owned(),
            at_ms: letter.at_ms,
            redriven_ms,
            source: letter.source,
            peer: letter.peer,
            stream: letter.stream,
            offset: letter.offset,
            frame: letter.frame_index,
            byte: letter.byte_offset,
            code: letter.code,
            message: letter.message,
            payload_bytes: letter.payload.as_ref().map_or(0, |payload| payload.len() as u64),
            payload: letter.payload.map(|payload| STANDARD.encode(payload)),
        }
    }
}

impl From<DeadLetterHead> for Letter {
    fn from(head: DeadLetterHead) -> Self {
        Self { payload_bytes: head.payload_bytes, ..head.letter.into() }
    }
}

/// Which dead letters are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Those that were sent again too.
    #[serde(default)]
    all: bool,
    /// Items at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before; the first page if left out.
    #[param(max_length = 1024)]
    cursor: Option<String>,
}

/// List the dead letters, oldest first
#[utoipa::path(get, path = "/api/v1/dead-letters", params(Wanted), responses((status = 200, body = Page<Letter>)))]
pub(super) async fn list(
    State(api): Shared,
    Params(wanted): Params<Wanted>,
) -> Result<Json<Page<Letter>>, Problem> {
    let page = PageOf { limit: wanted.limit, cursor: wanted.cursor };
    let (limit, after) = (page.limit()?, page.after::<i64>()?.unwrap_or(0));
    let state = (!wanted.all).then_some(DeadLetterState::Open);
    let store = &api.searcher.store;
    let letters = store.dead_letter_heads(&api.pipeline, state, after, limit + 1).await?;
    Ok(Json(Page::of(letters, limit, |head| head.letter.id)))
}

/// Show a dead letter with its bytes
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/{id}",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = Letter))
)]
pub(super) async fn show(State(api): Shared, Named(id): Named<i64>) -> Result<Json<Letter>, Problem> {
    let letter = api.dead_letter(id).await?;
    Ok(Json(letter.ok_or_else(|| Problem::no_such(format!("there is no dead letter {id}")))?.into()))
}

/// Which dead letters are sent again, and with what mended. To mend takes the
/// right to ingest as well.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Redrive {
    /// Their numbers.
    #[schema(min_items = 1, max_items = 1000)]
    pub ids: Vec<i64>,
    /// Fields set in each record on the way.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
}

/// What became of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Redriven {
    /// One by one, in the order asked for.
    pub outcomes: Vec<RedriveOutcome>,
}

/// What became of one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RedriveOutcome {
    /// Its number.
    pub id: i64,
    /// `redriven`; `refused` by the log; `kept`, because it would be refused
    /// again; `unanswered`, it may have been taken; `left`, it was not looked
    /// at: name it again.
    pub outcome: String,
    /// Why it was not sent or not taken.
    pub why: Option<String>,
}

/// Dead letters sent again at once.
const MOST: usize = 1_000;

/// Send dead letters again
#[utoipa::path(
    post,
    path = "/api/v1/dead-letters/redrive",
    request_body = Redrive,
    responses((status = 200, body = Redriven))
)]
pub(super) async fn redrive(
    State(api): Shared,
    caller: Caller,
    Input(asked): Input<Redrive>,
) -> Result<Json<Redriven>, Problem> {
    if !(1..=MOST).contains(&asked.ids.len()) {
        let detail = format!("name 1 to {MOST} dead letters in `ids`, not {}", asked.ids.len());
        return Err(Problem::bad_request("bad_request", detail));
    }
    if !asked.set.is_empty() {
        // Whoever says what is in a record brings it.
        let Caller(principal, visit) = &caller;
        principal.require(Right::Ingest).map_err(|denied| api.access.denied(principal, denied, visit))?;
    }
    let began = Instant::now();
    let set: Vec<Field> = asked.set.iter().map(|(key, value)| Field::new(key, value)).collect();
    api.record(&caller, "dead_letters.redrive", format!("{} letters", asked.ids.len())).await?;
    // What was done has to be told before the request's time is over.
    let limit = api.http.request_timeout.0;
    let (enough, end) = (began + limit.mul_f64(0.7), began + limit.mul_f64(0.9));
    let mut outcomes = Vec::with_capacity(asked.ids.len());
    let mut ended = None;
    for id in asked.ids {
        if ended.is_none() && Instant::now() >= enough {
            ended = Some("the time of the request is over".to_owned());
        }
        let (outcome, why) = match &ended {
            Some(why) => ("left", Some(why.clone())),
            None => match timeout_at(end, api.redrive(id, &set)).await {
                Ok(Ok(done)) => done,
                Ok(Err(problem)) => {
                    ended = Some(format!("one before it failed: {}", problem.code));
                    ("unanswered", Some(problem.inside.unwrap_or(problem.detail)))
                }
                Err(_) => ("unanswered", Some("nothing was heard of it in time".to_owned())),
            },
        };
        outcomes.push(RedriveOutcome { id, outcome: outcome.to_owned(), why });
    }
    Ok(Json(Redriven { outcomes }))
}

impl super::Api {
    /// The dead letter with this number, if it is one of this pipeline.
    async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let found = self.searcher.store.dead_letter(id).await?;
        Ok(found.filter(|letter| letter.letter.pipeline == self.pipeline))
    }

    async fn redrive(&self, id: i64, set: &[Field]) -> Result<(&'static str, Option<String>), Problem> {
        match self.dead_letter(id).await? {
            None => Ok(("kept", Some(format!("there is no dead letter {id}")))),
            Some(letter) => match mended(&letter, set) {
                Err(why) => Ok(("kept", Some(why))),
                Ok(frame) => self.send_again(id, frame).await,
            },
        }
    }

    async fn send_again(&self, id: i64, frame: Bytes) -> Result<(&'static str, Option<String>), Problem> {
        let origin = Origin { source: "redrive".to_owned(), peer: None, tenant: None };
        let run = Unit::Run { at: 0, count: 1, bytes: frame };
        let mut refused = None;
        let mut bounds = Bounds { room: WAIT_FOR_ROOM, refusals: 1 };
        for submitted in self.intake.submit_within(&origin, 0, run, &mut bounds).await {
            if let Answer::Refused(refusal) = self.intake.settle(submitted).await {
                refused = Some(format!("{}: {}", refusal.code, refusal.message));
            }
        }
        if refused.is_some() {
            return Ok(("refused", refused));
        }
        let first = self.searcher.store.mark_redriven(id, self.now_ms()).await?;
        Ok((
            "redriven",
            (!first).then(|| "it was sent again by somebody else at the same time too".to_owned()),
        ))
    }
}
