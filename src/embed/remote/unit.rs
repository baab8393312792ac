//! Texts that are to be asked for together, and what becomes of them when a
//! request for them fails. Pure.
//!
//! A request that is refused, or that a working service fails at again and
//! again, is halved until the bad text is alone. A text that is alone is given
//! up only when that has happened to it several times: a refusal may be that
//! of one replica of many, and a failure one in passing.

use std::time::{Duration, Instant};

use super::{
    chain::Policy,
    classify::{Fault, Size},
    place::Terms,
    retry::backoff,
};

/// Failures (5xx) at the same texts, after which it is asked whether the
/// endpoint works with others. Halves begin with one.
const SUSPECT: u32 = 3;
/// Failures at one text, after which it is given up.
const POISONOUS: u32 = 5;
/// Refusals of one text, after which it is given up.
const REFUSALS: u32 = 2;
/// How often one text is cut to three quarters.
const CUTS: u32 = 5;

/// Texts that are to be asked for together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unit {
    pub texts: Vec<usize>,
    /// Attempts that failed in passing.
    pub attempts: u32,
    /// The endpoint of the last failure, and until when others go first.
    pub avoid: Option<(usize, Instant)>,
    /// An endpoint that has the same texts already.
    pub never: Option<usize>,
    /// Since when one of the texts may be bad.
    pub doubted_at: Option<Instant>,
    /// Its vectors have come, and were bad.
    pub spoiled: bool,
    /// How often the service said that it failed at it.
    pub server_errors: u32,
    /// How often it was refused as it is.
    pub refusals: u32,
    /// How often its text was cut.
    pub cuts: u32,
    /// Part of a request that was too large for a reason that was not given:
    /// whether the size it has passes is to be found out.
    pub whole: bool,
}

/// What is done after a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// These are asked for.
    Again(Vec<Unit>),
    /// The text is cut, and asked for.
    Cut(Unit, usize),
    /// The text can never be embedded.
    Refuse(usize, String),
    /// No more attempts are made.
    GiveUp(String),
}

impl Unit {
    /// Its first `count` texts, and the others if there are any.
    pub fn split(mut self, count: usize) -> (Self, Option<Self>) {
        let rest = self.texts.split_off(count.min(self.texts.len()));
        let rest = (!rest.is_empty()).then(|| Self { texts: rest, ..self.clone() });
        (self, rest)
    }

    /// Another endpoint has the same texts: its word will be the second.
    pub fn seconded(self) -> Self {
        Self { refusals: self.refusals.max(REFUSALS - 1), ..self }
    }

    /// On what terms an endpoint that is asked now is believed.
    pub fn terms(&mut self, policy: &Policy, now: Instant) -> Terms {
        let alone = self.texts.len() == 1 || self.spoiled;
        let refused_since = if alone {
            *self.doubted_at.get_or_insert(now)
        } else {
            now.checked_sub(policy.trust).unwrap_or(now)
        };
        let suspect = self.server_errors + 1 >= SUSPECT;
        Terms { refused_since, failed_since: suspect.then_some(self.doubted_at.unwrap_or(now)) }
    }

    /// What is done after a request for it to the endpoint `at` has failed.
    /// `random` is in `0..1`.
    pub fn after(self, fault: Fault, at: usize, policy: &Policy, random: f64, now: Instant) -> Verdict {
        let unit = Self { doubted_at: self.doubted_at.or(Some(now)), ..self };
        let alone = if let [text] = unit.texts.as_slice() { Some(*text) } else { None };
        match (fault, alone) {
            (Fault::TooLong { .. } | Fault::TooLarge { of: Some(Size::Tokens), .. }, Some(text))
                if unit.cuts < CUTS =>
            {
                Verdict::Cut(Self { cuts: unit.cuts + 1, refusals: 0, ..unit }, text)
            }
            (
                Fault::Input { reason } | Fault::TooLong { reason } | Fault::TooLarge { reason, .. },
                Some(text),
            ) => unit.refused_alone(text, reason, at, policy, random, now),
            (Fault::TooLarge { of, .. }, None) => {
                Verdict::Again(Self { whole: of.is_none(), ..unit }.halves())
            }
            (Fault::Input { .. } | Fault::TooLong { .. }, None) => Verdict::Again(unit.halves()),
            (Fault::ServerError { reason }, _) => {
                Self { server_errors: unit.server_errors + 1, ..unit }.failed(reason, at, policy, random, now)
            }
            (Fault::Poison { reason }, alone) => unit.poisoned(alone, reason, at, policy, random, now),
            (Fault::Transient { reason, .. } | Fault::Malformed { reason }, _) => {
                // It was the endpoint, and may have been so before.
                Self { server_errors: 0, ..unit }.failed(reason, at, policy, random, now)
            }
            // No attempt is charged, and the gate knows what to do.
            (Fault::Rate { .. } | Fault::Quota { .. } | Fault::Configuration { .. }, _) => {
                Verdict::Again(vec![unit])
            }
        }
    }

    /// The next word is another endpoint's, if one may be asked, else the same
    /// one's after a little while.
    fn refused_alone(
        self,
        text: usize,
        reason: String,
        at: usize,
        policy: &Policy,
        random: f64,
        now: Instant,
    ) -> Verdict {
        let refusals = self.refusals + 1;
        if refusals >= REFUSALS {
            return Verdict::Refuse(text, reason);
        }
        let avoid = Some((at, now + wait(1, policy, random)));
        Verdict::Again(vec![Self { refusals, avoid, ..self }])
    }

    fn poisoned(
        self,
        alone: Option<usize>,
        reason: String,
        at: usize,
        policy: &Policy,
        random: f64,
        now: Instant,
    ) -> Verdict {
        let server_errors = self.server_errors + 1;
        match alone {
            Some(text) if server_errors >= POISONOUS => {
                let times = format!("{reason} ({server_errors} times, while other texts were embedded)");
                Verdict::Refuse(text, times)
            }
            None if server_errors >= SUSPECT => {
                Verdict::Again(Self { attempts: 0, server_errors: 1, avoid: None, ..self }.halves())
            }
            _ => {
                let avoid = Some((at, now + wait(server_errors, policy, random)));
                Verdict::Again(vec![Self { server_errors, avoid, ..self }])
            }
        }
    }

    fn failed(self, reason: String, at: usize, policy: &Policy, random: f64, now: Instant) -> Verdict {
        let attempts = self.attempts + 1;
        if attempts >= policy.attempts {
            return Verdict::GiveUp(reason);
        }
        let avoid = Some((at, now + wait(attempts, policy, random)));
        Verdict::Again(vec![Self { attempts, avoid, ..self }])
    }

    fn halves(self) -> Vec<Self> {
        let half = self.texts.len() / 2;
        let (first, second) = self.split(half);
        [Some(first), second].into_iter().flatten().collect()
    }
}

/// The wait before the next attempt at the same endpoint: never so short that
/// another one would not go first.
fn wait(attempt: u32, policy: &Policy, random: f64) -> Duration {
    backoff(attempt, policy.backoff, policy.longest_backoff, 0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(texts: usize) -> Unit {
        Unit { texts: (0..texts).collect(), ..Unit::default() }
    }

    fn after(unit: Unit, fault: &Fault) -> Verdict {
        unit.after(fault.clone(), 7, &Policy::default(), 0.5, Instant::now())
    }

    #[track_caller]
    fn again(unit: Unit, fault: &Fault) -> Vec<Unit> {
        match after(unit, fault) {
            Verdict::Again(units) => units,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn once_again(unit: Unit, fault: &Fault) -> Unit {
        let units = again(unit, fault);
        assert_eq!(units.len(), 1);
        units.into_iter().next().unwrap()
    }

    fn fault(make: fn(String) -> Fault) -> Fault {
        make("why".to_owned())
    }

    fn input() -> Fault {
        fault(|reason| Fault::Input { reason })
    }

    fn poison() -> Fault {
        fault(|reason| Fault::Poison { reason })
    }

    fn server_error() -> Fault {
        fault(|reason| Fault::ServerError { reason })
    }

    fn too_long() -> Fault {
        fault(|reason| Fault::TooLong { reason })
    }

    fn transient() -> Fault {
        Fault::transient("why")
    }

    #[test]
    fn what_is_refused_is_halved_and_a_text_alone_is_given_up_at_the_second_refusal() {
        let texts: Vec<Vec<usize>> = again(unit(5), &input()).into_iter().map(|unit| unit.texts).collect();
        assert_eq!(texts, [vec![0, 1], vec![2, 3, 4]]);
        let confirm = once_again(unit(1), &input());
        assert!(matches!(confirm.avoid, Some((7, _))), "another endpoint goes first");
        assert_eq!(after(confirm, &input()), Verdict::Refuse(0, "why".to_owned()));
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_a_few_times_before_that() {
        assert_eq!(again(unit(2), &too_long()).len(), 2);
        let mut long = unit(1);
        for _ in 0..CUTS {
            match after(long, &too_long()) {
                Verdict::Cut(cut, 0) => long = cut,
                other => panic!("{other:?}"),
            }
        }
        let long = once_again(long, &too_long());
        assert!(matches!(after(long, &too_long()), Verdict::Refuse(0, _)));
    }

    #[test]
    fn texts_that_a_working_service_fails_at_are_halved_at_the_third_time_and_then_at_the_second() {
        let twice = once_again(once_again(unit(4), &server_error()), &server_error());
        let halves = again(twice, &poison());
        assert_eq!(halves.len(), 2);
        let once = once_again(halves[0].clone(), &server_error());
        assert_eq!(again(once, &poison()).len(), 2);
    }

    #[test]
    fn a_text_that_a_working_service_fails_at_is_given_up_at_the_fifth_time() {
        let mut text = once_again(once_again(unit(1), &server_error()), &server_error());
        for _ in 0..2 {
            text = once_again(text, &poison());
        }
        match after(text, &poison()) {
            Verdict::Refuse(0, reason) => assert!(reason.starts_with("why (5 times"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_of_the_endpoint_itself_clears_its_texts() {
        let mut text = unit(1);
        for _ in 0..3 {
            text = once_again(text, &poison());
        }
        let cleared = once_again(text, &transient());
        assert_eq!((cleared.server_errors, cleared.attempts), (0, 1));
    }

    #[test]
    fn attempts_that_fail_in_passing_are_bounded_and_a_429_charges_none() {
        let mut text = unit(3);
        let rate = Fault::Rate { retry_after: None, reason: String::new() };
        for _ in 1..Policy::default().attempts {
            text = once_again(once_again(text, &rate), &transient());
        }
        assert_eq!(after(text, &transient()), Verdict::GiveUp("why".to_owned()));
    }

    #[test]
    fn an_endpoint_is_asked_whether_it_works_once_texts_are_suspected() {
        let (policy, now) = (Policy::default(), Instant::now());
        let mut many = unit(9);
        assert_eq!(many.terms(&policy, now).failed_since, None);
        let mut many = Unit { server_errors: SUSPECT - 1, doubted_at: Some(now), ..many };
        assert_eq!(many.terms(&policy, now + policy.trust).failed_since, Some(now));
        let later = now + policy.trust;
        assert_eq!(many.terms(&policy, later).refused_since, now, "any time lately");
        let mut one = unit(1);
        assert_eq!(one.terms(&policy, now).refused_since, now);
        assert_eq!(one.terms(&policy, later).refused_since, now, "since it was asked for first");
    }

    #[test]
    fn only_a_refusal_without_a_reason_is_bisected_by_what_the_parts_have() {
        let large = |of| Fault::TooLarge { of, reason: String::new() };
        assert!(again(unit(2), &large(None)).iter().all(|unit| unit.whole));
        assert!(again(unit(2), &large(Some(Size::Tokens))).iter().all(|unit| !unit.whole));
    }
}
