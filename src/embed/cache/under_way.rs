//! The texts that are being asked for right now: who needs the same one waits
//! for it instead of paying for it again.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use super::Key;
use crate::embed::Work;

/// What each text is asked for as, and what ends when that has been answered.
#[derive(Default)]
pub(super) struct UnderWay(Mutex<HashMap<Key, (Work, watch::Receiver<()>)>>);

/// Some texts, divided.
pub(super) struct Divided<'a> {
    /// For the caller to ask for, with their places.
    pub mine: Vec<(Key, usize)>,
    /// Others ask for these.
    pub theirs: Vec<(Key, usize)>,
    /// Until this is dropped, nobody else asks for the caller's.
    pub claim: Claim<'a>,
    waits: Vec<watch::Receiver<()>>,
}

/// Texts that one call asks for. They are free again when it is dropped,
/// whatever has become of the call.
pub(super) struct Claim<'a> {
    under_way: &'a UnderWay,
    keys: Vec<Key>,
    _answered: watch::Sender<()>,
}

impl UnderWay {
    /// Divides `wanted`. Live work takes what only a back-fill asks for as its
    /// own: a back-fill may have to wait long.
    pub(super) fn divide(&self, wanted: Vec<(Key, usize)>, work: Work) -> Divided<'_> {
        let (answered, ended) = watch::channel(());
        let mut claim = Claim { under_way: self, keys: Vec::new(), _answered: answered };
        let (mut mine, mut theirs, mut waits) = (Vec::new(), Vec::new(), Vec::<watch::Receiver<()>>::new());
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, place) in wanted {
            match asked.entry(key) {
                Entry::Vacant(free) => {
                    free.insert((work, ended.clone()));
                    claim.keys.push(key);
                    mine.push((key, place));
                }
                Entry::Occupied(taken) if work == Work::Live && taken.get().0 == Work::Backfill => {
                    mine.push((key, place));
                }
                Entry::Occupied(taken) => {
                    theirs.push((key, place));
                    let (_, wait) = taken.get();
                    if !waits.iter().any(|other| other.same_channel(wait)) {
                        waits.push(wait.clone());
                    }
                }
            }
        }
        drop(asked);
        Divided { mine, theirs, claim, waits }
    }

    /// All of `wanted` for the caller, whoever else asks for it.
    pub(super) fn undivided(&self, wanted: Vec<(Key, usize)>) -> Divided<'_> {
        let (answered, _) = watch::channel(());
        let claim = Claim { under_way: self, keys: Vec::new(), _answered: answered };
        Divided { mine: wanted, theirs: Vec::new(), claim, waits: Vec::new() }
    }
}

impl Divided<'_> {
    /// Frees the caller's texts and returns those of others, once they have
    /// been answered: with a vector, a refusal or a failure.
    ///
    /// Nobody waits with texts of their own still taken, so no two wait for
    /// each other.
    pub(super) async fn theirs(self) -> Vec<(Key, usize)> {
        let Self { theirs, claim, waits, .. } = self;
        drop(claim);
        for mut wait in waits {
            // Nothing is ever sent: it ends when the sender is dropped.
            while wait.changed().await.is_ok() {}
        }
        theirs
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut asked = self.under_way.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            asked.remove(key);
        }
    }
}
