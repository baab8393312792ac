//! Whether a trained dictionary is worth having.
//!
//! Pure: what the held-out segments came to in, a verdict out.

use serde::Serialize;

/// A dictionary that could be adopted, weighed on segments that it was not
/// trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entrant {
    /// Bytes of the dictionary itself.
    pub dictionary_bytes: u64,
    /// Bytes of the held-out segments when sealed with it.
    pub segment_bytes: u64,
}

impl Entrant {
    /// What adopting it would cost in all: it is stored once for the segments.
    pub fn total(&self) -> u64 {
        self.segment_bytes.saturating_add(self.dictionary_bytes)
    }
}

/// What the held-out segments come to, by how they are sealed. All at one
/// level, and but for `undivided` in blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Contest {
    /// With the new dictionary.
    pub entrant: Entrant,
    /// In the same blocks without a dictionary.
    pub without: u64,
    /// In the blocks that are used without a dictionary.
    pub undivided: u64,
    /// In the same blocks with the dictionary that is adopted now. Its own
    /// bytes do not count: they are stored already, and stay.
    pub present: Option<u64>,
}

/// What to do with a trained dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// New segments are to be sealed with it.
    Adopted,
    /// It is not worth it.
    Rejected {
        /// What it does not beat.
        against: Loss,
    },
}

/// What a dictionary does not beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The same blocks without a dictionary, by the margin.
    NoDictionary,
    /// The blocks that are used without a dictionary: segments would grow.
    LargerBlocks,
    /// The dictionary that is adopted now, by the margin.
    Present,
}

impl Contest {
    /// Adopts what makes segments smaller by `margin` (0.03 is 3 %) than both
    /// the same blocks without a dictionary and the present dictionary, and no
    /// larger than they are without one.
    pub fn verdict(&self, margin: f64) -> Verdict {
        let total = self.entrant.total();
        let rejected = |against| Verdict::Rejected { against };
        if !wins(total, self.without, margin) {
            return rejected(Loss::NoDictionary);
        }
        if total > self.undivided {
            return rejected(Loss::LargerBlocks);
        }
        match self.present {
            Some(present) if !wins(total, present, margin) => rejected(Loss::Present),
            _ => Verdict::Adopted,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of some gigabytes needs no more digits")]
fn wins(total: u64, against: u64, margin: f64) -> bool {
    total as f64 <= against as f64 * (1.0 - margin) && total < against
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 950 bytes of segments and a dictionary of 10, against 1,000 without.
    fn contest() -> Contest {
        let entrant = Entrant { dictionary_bytes: 10, segment_bytes: 950 };
        Contest { entrant, without: 1_000, undivided: 980, present: None }
    }

    fn lost_to(contest: Contest, margin: f64) -> Option<Loss> {
        match contest.verdict(margin) {
            Verdict::Adopted => None,
            Verdict::Rejected { against } => Some(against),
        }
    }

    #[test]
    fn the_margin_decides_and_the_dictionarys_own_bytes_count() {
        assert_eq!(lost_to(contest(), 0.03), None);
        assert_eq!(lost_to(contest(), 0.04), None);
        assert_eq!(lost_to(contest(), 0.041), Some(Loss::NoDictionary));
        let heavy = Entrant { dictionary_bytes: 30, ..contest().entrant };
        assert_eq!(lost_to(Contest { entrant: heavy, ..contest() }, 0.03), Some(Loss::NoDictionary));
    }

    #[test]
    fn segments_never_grow() {
        assert_eq!(lost_to(Contest { undivided: 960, ..contest() }, 0.03), None);
        assert_eq!(lost_to(Contest { undivided: 959, ..contest() }, 0.03), Some(Loss::LargerBlocks));
    }

    #[test]
    fn the_present_dictionary_stays_unless_it_is_beaten_by_the_margin() {
        let present = |bytes| Contest { present: Some(bytes), ..contest() };
        assert_eq!(lost_to(present(960), 0.03), Some(Loss::Present));
        assert_eq!(lost_to(present(980), 0.03), Some(Loss::Present));
        assert_eq!(lost_to(present(990), 0.03), None);
    }

    #[test]
    fn without_a_margin_a_draw_is_no_win() {
        let draw = Contest { without: 960, undivided: 960, ..contest() };
        assert_eq!(lost_to(draw, 0.0), Some(Loss::NoDictionary));
        assert_eq!(lost_to(Contest { without: 961, ..draw }, 0.0), None);
    }
}
