//! How long to wait before the next attempt.

use std::time::Duration;

/// Back-off with full jitter (Brooker, *Exponential Backoff And Jitter*,
/// 2015): a random span up to `base` doubled with every attempt, at most
/// `longest`. `attempt` counts from 1; `random` is in `0..1`.
pub fn backoff(attempt: u32, base: Duration, longest: Duration, random: f64) -> Duration {
    let doubled = base.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);

    #[test]
    fn the_span_to_choose_from_doubles_up_to_the_longest() {
        let most = |attempt| backoff(attempt, BASE, LONGEST, 1.0).as_millis();
        assert_eq!([1, 2, 3, 6, 7, 40, u32::MAX].map(most), [200, 400, 800, 6_400, 10_000, 10_000, 10_000]);
    }

    proptest! {
        #[test]
        fn any_random_number_gives_a_wait_within_the_span(attempt in any::<u32>(), random in 0.0..1.0) {
            let wait = backoff(attempt, BASE, LONGEST, random);
            prop_assert!(wait <= LONGEST);
            prop_assert!(wait <= backoff(attempt, BASE, LONGEST, 1.0));
        }
    }
}
