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
mod trail;
mod upkeep;

pub use authenticator::{Authenticator, OpenError};
pub use trail::Trail;
pub use upkeep::Upkeep;

use crate::{clock::Clock, identity::Settings, store::Store};

/// Opens the way in that `settings` describe: without any, everybody is let
/// in. The trail is kept in either case. [`Upkeep::run`] has to run.
pub fn open(
    settings: Option<&Settings>,
    store: &Store,
    clock: Clock,
) -> Result<(Authenticator, Trail, Upkeep), OpenError> {
    let (used, uses) = keyring::uses();
    let authenticator = match settings {
        Some(settings) => Authenticator::new(settings, store.clone(), used, clock.clone())?,
        None => Authenticator::open(),
    };
    let (trail, refusals) = trail::new(store.clone());
    let upkeep = Upkeep::new(store.clone(), authenticator.clone(), refusals, uses, clock);
    Ok((authenticator, trail, upkeep))
}
