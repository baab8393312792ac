//! How much one endpoint takes in a request, as its refusals and answers have
//! shown. Pure.
//!
//! A refusal shows that less than its size passes, unless as much has passed
//! lately: then it was something else, a single text perhaps, and nothing is
//! learned. An answer shows that its size passes. Now and then a little more
//! is tried, so that what was learned in a bad hour does not hold for ever.

use std::time::{Duration, Instant};

use super::{classify::Size, shape::Limits};

/// What has passed is believed to pass for so long.
const BELIEVED: Duration = Duration::from_secs(600);
/// A little more is tried after this.
const LONGER: Duration = Duration::from_secs(300);

/// What passes in one request.
#[derive(Clone, Debug)]
pub struct Learned {
    most: Limits,
    inputs: Bound,
    tokens: Bound,
}

/// One limit.
#[derive(Clone, Copy, Debug)]
struct Bound {
    most: u64,
    limit: u64,
    passed: Option<(u64, Instant)>,
    changed_at: Instant,
}

impl Learned {
    /// Nothing is known but what the settings or the API say.
    pub fn new(most: Limits, now: Instant) -> Self {
        Self { most, inputs: Bound::new(most.inputs as u64, now), tokens: Bound::new(most.tokens, now) }
    }

    /// What a request may hold.
    pub fn limits(&self) -> Limits {
        let inputs = usize::try_from(self.inputs.limit).unwrap_or(usize::MAX);
        Limits { inputs, tokens: self.tokens.limit, ..self.most }
    }

    /// What a request might hold, if nothing had been learned.
    pub fn most(&self) -> Limits {
        self.most
    }

    /// A request was refused as too large.
    pub fn refused(&mut self, of: Option<Size>, inputs: usize, tokens: u64, now: Instant) {
        match of {
            // A text by itself cannot be made fewer.
            _ if inputs < 2 => {}
            Some(Size::Inputs) => self.inputs.refused(inputs as u64, now),
            // Where nothing is said, it is the body's length, which goes with the tokens.
            Some(Size::Tokens) | None => self.tokens.refused(tokens, now),
        }
    }

    /// A request was answered.
    pub fn passed(&mut self, inputs: usize, tokens: u64, now: Instant) {
        self.inputs.passed(inputs as u64, now);
        self.tokens.passed(tokens, now);
    }
}

impl Bound {
    fn new(most: u64, now: Instant) -> Self {
        Self { most, limit: most, passed: None, changed_at: now }
    }

    /// The largest size that has passed lately.
    fn proven(&self, now: Instant) -> u64 {
        let lately = |(_, at): &(u64, Instant)| now.saturating_duration_since(*at) <= BELIEVED;
        self.passed.filter(lately).map_or(0, |(size, _)| size)
    }

    fn refused(&mut self, size: u64, now: Instant) {
        let proven = self.proven(now);
        if size > proven {
            self.limit = self.limit.min(proven.max(size / 2).max(1));
            self.changed_at = now;
        }
    }

    fn passed(&mut self, size: u64, now: Instant) {
        if size >= self.proven(now) {
            self.passed = Some((size, now));
        }
        self.limit = self.limit.max(size.min(self.most));
        let filled = size >= self.limit / 4 * 3;
        if filled && self.limit < self.most && now.saturating_duration_since(self.changed_at) >= LONGER {
            self.limit = (self.limit + (self.limit / 4).max(1)).min(self.most);
            self.changed_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Limits = Limits { inputs: 1_000, tokens: 100_000, bytes: 8_000_000 };

    fn inputs(learned: &Learned) -> usize {
        learned.limits().inputs
    }

    #[test]
    fn what_was_refused_is_not_sent_again() {
        let now = Instant::now();
        let mut learned = Learned::new(MOST, now);
        learned.refused(Some(Size::Inputs), 1_000, 9_000, now);
        learned.refused(Some(Size::Tokens), 100, 9_000, now);
        learned.refused(Some(Size::Tokens), 1, 600, now);
        assert_eq!(learned.limits(), Limits { inputs: 500, tokens: 4_500, ..MOST });
        learned.refused(None, 100, 1_000, now);
        assert_eq!(learned.limits(), Limits { inputs: 500, tokens: 500, ..MOST });
        assert_eq!(learned.most(), MOST);
    }

    #[test]
    fn a_refusal_of_what_has_passed_lately_shows_nothing() {
        let now = Instant::now();
        let mut learned = Learned::new(MOST, now);
        learned.passed(100, 800, now);
        for size in [100, 50, 25] {
            learned.refused(Some(Size::Inputs), size, 1, now);
        }
        assert_eq!(inputs(&learned), 1_000);
        learned.refused(Some(Size::Inputs), 120, 1, now);
        assert_eq!(inputs(&learned), 100);
        let later = now + BELIEVED + Duration::from_secs(1);
        learned.refused(Some(Size::Inputs), 100, 1, later);
        assert_eq!(inputs(&learned), 50);
    }

    /// A single text is refused with 413: the halves without it pass.
    #[test]
    fn one_bisection_teaches_no_more_than_its_first_step() {
        let now = Instant::now();
        let mut learned = Learned::new(MOST, now);
        let mut size = 8_000;
        while size > 8 {
            learned.refused(None, 2, size, now);
            size /= 2;
        }
        assert_eq!(learned.limits().tokens, 7);
        for n in [8, 16, 4_000, 32] {
            learned.passed(2, n, now);
        }
        assert_eq!(learned.limits().tokens, 4_000);
    }

    #[test]
    fn it_grows_again_slowly_as_full_requests_pass_and_not_over_the_most() {
        let now = Instant::now();
        let mut learned = Learned::new(MOST, now);
        learned.refused(Some(Size::Inputs), 80, 1, now);
        learned.passed(40, 1, now);
        assert_eq!(inputs(&learned), 40);
        learned.passed(8, 1, now + LONGER);
        assert_eq!(inputs(&learned), 40, "no full request");
        learned.passed(40, 1, now + LONGER);
        learned.passed(50, 1, now + LONGER);
        assert_eq!(inputs(&learned), 50);
        learned.refused(Some(Size::Inputs), 62, 1, now + LONGER * 2);
        assert_eq!(inputs(&learned), 50, "what is known to pass is kept");
        for n in 3..60 {
            learned.passed(inputs(&learned), 1, now + LONGER * n);
        }
        assert_eq!(inputs(&learned), 1_000);
    }

    proptest! {
        /// Whatever the true limit is, it is found in a few refusals, and then
        /// nearly every request passes.
        #[test]
        fn a_limit_is_found_and_kept_to(real in 1..1_000_usize) {
            let mut now = Instant::now();
            let (mut learned, mut refusals) = (Learned::new(MOST, now), 0);
            for _ in 0..1_000 {
                now += Duration::from_secs(1);
                let size = inputs(&learned);
                if size <= real {
                    learned.passed(size, 1, now);
                } else {
                    learned.refused(Some(Size::Inputs), size, 1, now);
                    refusals += 1;
                }
            }
            prop_assert!(inputs(&learned) * 2 >= real);
            prop_assert!(refusals <= 10 + 4, "{refusals}");
        }
    }
}
