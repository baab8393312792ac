//! The one place where damage of the log is reported, whoever finds it:
//! opening, deriving, sealing or checking. It is remembered in the store, so
//! that a restart does not forget it, and shown until `segments repair`.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{offsets::Offsets, survey::relative};
use crate::{
    clock::Clock,
    log::{LogReader, ReadError, Segment},
    metrics, segment,
    store::{Damage, DamageKind, Store, StoreError},
};

/// The damage of one stream.
pub struct DamageRegister {
    store: Store,
    log: LogReader,
    folder: std::path::PathBuf,
    clock: Clock,
    known: Mutex<Vec<Damage>>,
}

impl DamageRegister {
    /// Goes on from what is remembered of the stream of `log`, whose files are
    /// in `folder`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn open(
        store: Store,
        log: LogReader,
        folder: std::path::PathBuf,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let known = store.damage(log.stream()).await?;
        let register = Self { store, log, folder, clock, known: Mutex::new(known) };
        register.measure();
        Ok(register)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Damage>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is damaged and not repaired yet, in the order of offsets.
    pub fn open_damage(&self) -> Vec<Damage> {
        let mut open: Vec<Damage> = self.known().iter().filter(|d| d.settled_ms.is_none()).cloned().collect();
        open.sort_by_key(|damage| (damage.first_offset, damage.next_offset));
        open
    }

    /// What of `gaps` is not settled as lost for good.
    pub fn unsettled(&self, gaps: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let settled: Offsets =
            self.known().iter().filter(|d| d.settled_ms.is_some()).map(Damage::offsets).collect();
        gaps.into_iter().flat_map(|gap| settled.missing(gap)).collect()
    }

    /// Takes up what of `found` is news.
    pub async fn report(&self, found: Vec<Damage>) {
        let news: Vec<Damage> = {
            let mut known = self.known();
            let news: Vec<Damage> = found.into_iter().filter(|one| is_news(one, &known)).collect();
            known.extend(news.iter().cloned());
            news
        };
        if news.is_empty() {
            return;
        }
        for damage in &news {
            metrics::damage_found(damage.kind.as_str());
            tracing::error!(
                stream = self.log.stream(),
                file = damage.file,
                kind = damage.kind.as_str(),
                first_offset = damage.first_offset,
                next_offset = damage.next_offset,
                detail = damage.detail,
                "the log is damaged; what can be read is kept, `thalweg segments repair` sees to the rest"
            );
        }
        self.measure();
        if let Err(error) = self.store.put_damage(self.log.stream(), &news).await {
            // Shown as long as the process lives; what is on disk tells the
            // next one.
            tracing::error!(%error, "damage could not be remembered");
        }
    }

    /// `offsets` were passed over: they are in the log and cannot be read.
    pub async fn passed_over(&self, offsets: Range<u64>) {
        let (file, kind) = match self.log.segments().range(..=offsets.start).next_back() {
            Some((_, Segment::Raw(raw))) => (relative(raw.path(), &self.folder), DamageKind::Batches),
            Some((base, Segment::Sealed(sealed))) if sealed.info().end_offset > offsets.start => {
                (format!("{base:020}.seg.zst"), DamageKind::Gap)
            }
            _ => (format!("{:020}.log", offsets.start), DamageKind::Missing),
        };
        self.report(vec![self.damage(file, kind, offsets, "passed over when it was to be derived")]).await;
    }

    /// Reading the log failed; takes it up if that is damage.
    pub async fn unreadable(&self, error: &ReadError) {
        if let ReadError::Damaged {
            source: segment::ReadError::Block { path, first_offset, end_offset, block, reason, .. },
            ..
        } = error
        {
            let (file, detail) = (relative(path, &self.folder), format!("block {block}: {reason}"));
            let offsets = *first_offset..*end_offset;
            self.report(vec![self.damage(file, DamageKind::Block, offsets, detail)]).await;
        }
    }

    /// Found now.
    pub fn damage(
        &self,
        file: String,
        kind: DamageKind,
        offsets: Range<u64>,
        detail: impl Into<String>,
    ) -> Damage {
        Damage {
            file,
            kind,
            first_offset: offsets.start,
            next_offset: offsets.end.max(offsets.start),
            detail: detail.into(),
            found_ms: (self.clock)(),
            settled_ms: None,
        }
    }

    fn measure(&self) {
        let known = self.known();
        let open = known.iter().filter(|damage| damage.settled_ms.is_none()).count();
        let lost: Offsets =
            known.iter().filter(|damage| damage.kind != DamageKind::Expired).map(Damage::offsets).collect();
        metrics::damage_state(open, lost.count());
    }
}

/// Offsets that are reported need no second report; nor does a file that
/// lost nothing.
fn is_news(one: &Damage, known: &[Damage]) -> bool {
    if one.lost() == 0 {
        return !known.iter().any(|d| d.settled_ms.is_none() && d.file == one.file && d.kind == one.kind);
    }
    let reported: Offsets = known.iter().map(Damage::offsets).collect();
    !reported.contains(&one.offsets())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(file: &str, offsets: Range<u64>) -> Damage {
        Damage {
            file: file.into(),
            kind: DamageKind::Block,
            first_offset: offsets.start,
            next_offset: offsets.end,
            detail: String::new(),
            found_ms: 0,
            settled_ms: None,
        }
    }

    #[test]
    fn only_offsets_not_reported_before_are_news() {
        let known = [damage("a", 0..10), Damage { settled_ms: Some(1), ..damage("b", 10..20) }];
        assert!(!is_news(&damage("c", 5..15), &known));
        assert!(is_news(&damage("a", 5..25), &known));
    }

    #[test]
    fn a_file_that_lost_nothing_is_news_once_until_it_is_repaired() {
        let open = damage("a", 3..3);
        assert!(is_news(&open, &[]));
        assert!(!is_news(&open, std::slice::from_ref(&open)));
        assert!(is_news(&open, &[Damage { settled_ms: Some(1), ..open.clone() }]));
    }
}
