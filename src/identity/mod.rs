//! Who a request speaks for, and what they may do.
//!
//! Every way in (HTTP, TCP, Unix, Forward) turns what it was shown into a
//! [`Principal`], once; from there on only the principal counts. What
//! concerns one tenant is open to a principal of that tenant, what concerns
//! all of them only to a principal of none in particular.
//!
//! Here stands what needs no database: the vocabulary, what an API key looks
//! like and whether it holds, tokens of an identity provider, and what the
//! trail says of an act. [`crate::access`] finds the keys and keeps the trail.

mod credential;
mod entry;
mod key;
mod principal;
mod refusal;
mod settings;
pub mod token;

pub use credential::{Credential, Shown};
pub use entry::{Entry, Outcome, TrailRow};
pub use key::{ApiKey, MintedKey, NewKey};
pub use principal::{Denied, Principal, RateTier, Right, Role, Roles, Scheme};
pub use refusal::Unauthenticated;
pub use settings::{Jwt, Settings};
