//! Who is let in, and what is written down of it.
//!
//! [`Authenticator`] turns credentials into a principal; [`Trail`] keeps what
//! administrators did and what was refused; [`keys`] makes and takes API keys.
//! What has to be done beside the requests, and must never hold one up, is
//! one task: [`Upkeep`].

mod authenticator;
mod flood;
mod keyring;
pub mod keys;
#[cfg(test)]
mod tests;
mod trail;
mod upkeep;

pub use authenticator::{Authenticator, OpenError, Way};
pub use trail::Trail;
pub use upkeep::Upkeep;

use crate::{
    clock::Clock,
    identity::{Credential, Denied, Entry, Principal, Right, Settings, Unauthenticated},
    store::Store,
};

/// Lets in who may come in, and has written down who may not. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    /// Says who somebody is.
    pub authenticator: Authenticator,
    /// What was done and refused.
    pub trail: Trail,
    clock: Clock,
}

/// What somebody wants, and from where.
#[derive(Clone, Debug)]
pub struct Visit {
    /// What they want to do: `frames.send`.
    pub act: &'static str,
    /// Their address.
    pub peer: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
}

impl Visit {
    /// `entry` with where it came from.
    pub fn sign(&self, entry: Entry) -> Entry {
        Entry { peer: self.peer.clone(), request_id: self.request_id.clone(), ..entry }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Nobody knows who they are.
    #[error(transparent)]
    Unknown(#[from] Unauthenticated),
    /// They may not do what they want.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl NotAdmitted {
    /// The stable code (`docs/identity.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown(unknown) => unknown.code(),
            Self::Denied(denied) => denied.code(),
        }
    }

    /// Whether the same may be let in later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unknown(unknown) if unknown.is_transient())
    }
}

impl Access {
    /// Who shows `credential`, if they have `right`. A refusal goes to the
    /// trail.
    pub async fn admit(
        &self,
        credential: Option<&Credential>,
        right: Right,
        visit: &Visit,
    ) -> Result<Principal, NotAdmitted> {
        let principal = self.authenticator.authenticate(credential).await.inspect_err(|unknown| {
            self.note(Entry::unknown((self.clock)(), visit.act, unknown.code()), visit);
        })?;
        principal.require(right).map_err(|denied| self.denied(&principal, denied, visit))?;
        Ok(principal)
    }

    /// Has written down what somebody was denied.
    pub fn denied(&self, principal: &Principal, denied: Denied, visit: &Visit) -> Denied {
        self.note(Entry::refused((self.clock)(), principal, visit.act, denied.code()), visit);
        denied
    }

    /// What time it is, by the clock that credentials expire by.
    pub fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    /// Has written down that somebody unknown was refused.
    pub fn turned_away(&self, code: &'static str, visit: &Visit) {
        self.note(Entry::unknown((self.clock)(), visit.act, code), visit);
    }

    fn note(&self, entry: Entry, visit: &Visit) {
        self.trail.refused(visit.sign(entry));
    }
}

/// Opens the way in that `settings` describe: without any, everybody is let
/// in. The trail is kept in either case. [`Upkeep::run`] has to run.
pub fn open(settings: Option<&Settings>, store: &Store, clock: Clock) -> Result<(Access, Upkeep), OpenError> {
    let (used, uses) = keyring::uses();
    let authenticator = Authenticator::open(store.clone(), used, clock.clone());
    authenticator.take(authenticator.prepare(settings)?);
    let (trail, refusals) = trail::new(store.clone());
    let upkeep = Upkeep::new(store.clone(), authenticator.clone(), refusals, uses, clock.clone());
    Ok((Access { authenticator, trail, clock }, upkeep))
}
