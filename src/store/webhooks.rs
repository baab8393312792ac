//! What is told by webhooks, as it is stored: an outbox, and the log of what
//! became of it. Times are in milliseconds since the Unix epoch.

use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;

use super::error::StoreError;

/// Where a delivery stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// It is to be sent, perhaps again.
    Waiting,
    /// The receiver has it.
    Delivered,
    /// It was given up.
    Failed,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Delivered, Self::Failed];

    /// The stored name, which is also the one that programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl TryFrom<String> for DeliveryState {
    type Error = StoreError;

    fn try_from(name: String) -> Result<Self, StoreError> {
        let damaged =
            || StoreError::Damaged { what: "webhook delivery", reason: format!("unknown state `{name}`") };
        Self::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(damaged)
    }
}

/// Something to be told to one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDelivery {
    /// Its id, which sorts by time.
    pub delivery_id: String,
    /// The pipeline that has the webhook.
    pub pipeline: String,
    /// The webhook's name.
    pub webhook: String,
    /// What happened.
    pub event: String,
    /// The tenant it is about, whose erasure takes it away.
    pub tenant: Option<String>,
    /// What is sent.
    pub body: String,
    /// When it happened.
    pub created_ms: i64,
    /// It is not tried any more after that.
    pub give_up_ms: i64,
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromRow, ToSchema)]
pub struct Delivery {
    /// Its id, which sorts by time.
    pub delivery_id: String,
    /// The pipeline that has the webhook.
    pub pipeline: String,
    /// The webhook's name.
    pub webhook: String,
    /// What happened.
    pub event: String,
    /// What is sent.
    pub body: String,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub state: DeliveryState,
    /// When it happened.
    pub created_ms: i64,
    /// It is not tried before.
    pub due_ms: i64,
    /// It is not tried any more after that.
    pub give_up_ms: i64,
    /// How often somebody set out to send it.
    pub claim: i64,
    /// How often it was tried to the end.
    #[sqlx(try_from = "i64")]
    pub attempts: u32,
    /// When it was tried last.
    pub tried_ms: Option<i64>,
    /// How long that took, in milliseconds.
    pub took_ms: Option<i64>,
    /// HTTP status of the answer; none if there was none.
    pub status: Option<i64>,
    /// Why it is not delivered.
    pub error: Option<String>,
    /// When it was delivered or given up.
    pub ended_ms: Option<i64>,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryNote {
    /// When it was made.
    pub tried_ms: i64,
    /// How long it took, in milliseconds.
    pub took_ms: i64,
    /// HTTP status of the answer.
    pub status: Option<u16>,
    /// Why it is not delivered.
    pub error: Option<String>,
    /// Where the delivery stands then.
    pub state: DeliveryState,
    /// When it is tried again, if it waits.
    pub due_ms: Option<i64>,
}

/// Whose deliveries, and until when they are somebody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryClaim<'a> {
    /// The pipeline.
    pub pipeline: &'a str,
    /// The webhook.
    pub webhook: &'a str,
    /// How many at most.
    pub most: u32,
    /// What time it is.
    pub now_ms: i64,
    /// When somebody else may try.
    pub until_ms: i64,
}

/// Which deliveries are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only to this webhook.
    pub webhook: Option<String>,
    /// Only those in this state.
    pub state: Option<DeliveryState>,
}
