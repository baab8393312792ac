//! What becomes of a delivery after an attempt: a pure function of how it
//! ended and of the time.

use crate::store::DeliveryState;

/// How long a delivery is tried.
pub const PATIENCE_MS: i64 = 24 * 3_600 * 1_000;
/// First wait before it is tried again; twice as long after each further
/// failure.
const FIRST_WAIT_MS: i64 = 1_000;
/// Longest wait.
const LONGEST_WAIT_MS: i64 = 3_600_000;
/// The receiver says that it is not there any more, and never will be.
const GONE: u16 = 410;

/// Where a delivery stands after its attempt number `attempts` (from 1), and
/// when it is tried again. Any status of success is a receipt. `random` draws
/// the wait between half of what it would be and all of it, so that many do not
/// come back at once.
pub fn after(
    attempts: u32,
    status: Option<u16>,
    (now_ms, give_up_ms): (i64, i64),
    random: u64,
) -> (DeliveryState, Option<i64>) {
    match status {
        Some(200..=299) => return (DeliveryState::Delivered, None),
        Some(GONE) => return (DeliveryState::Failed, None),
        _ => {}
    }
    let doublings = attempts.saturating_sub(1).min(30);
    let wait_ms = (FIRST_WAIT_MS << doublings).min(LONGEST_WAIT_MS);
    let half = wait_ms / 2;
    let drawn = i64::try_from(random % (half.unsigned_abs() + 1)).unwrap_or(half);
    let due_ms = now_ms.saturating_add(half + drawn);
    if due_ms > give_up_ms { (DeliveryState::Failed, None) } else { (DeliveryState::Waiting, Some(due_ms)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn success_is_a_receipt_and_gone_is_an_end() {
        assert_eq!(after(1, Some(204), (5, 9), 0), (DeliveryState::Delivered, None));
        assert_eq!(after(1, Some(410), (5, 1 << 40), 0), (DeliveryState::Failed, None));
        for status in [None, Some(199), Some(302), Some(404), Some(429), Some(500)] {
            assert_eq!(after(1, status, (5, 1 << 40), 0), (DeliveryState::Waiting, Some(505)), "{status:?}");
        }
    }

    #[test]
    fn a_receiver_that_stays_away_is_tried_for_a_day() {
        let (mut now_ms, mut attempts) = (0, 0);
        loop {
            attempts += 1;
            match after(attempts, None, (now_ms, PATIENCE_MS), u64::from(attempts) * 7_919) {
                (DeliveryState::Waiting, Some(due_ms)) => now_ms = due_ms,
                end => break assert_eq!(end, (DeliveryState::Failed, None)),
            }
        }
        assert!((30..70).contains(&attempts), "{attempts}");
        assert!(now_ms > PATIENCE_MS - LONGEST_WAIT_MS);
    }

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds(attempts in 1_u32.., random in any::<u64>()) {
            let (state, due_ms) = after(attempts, Some(500), (0, i64::MAX), random);
            let full = FIRST_WAIT_MS.checked_shl(attempts - 1).filter(|_| attempts < 13).unwrap_or(LONGEST_WAIT_MS).min(LONGEST_WAIT_MS);
            prop_assert_eq!(state, DeliveryState::Waiting);
            prop_assert!((full / 2..=full).contains(&due_ms.unwrap()), "{:?} of {}", due_ms, full);
        }
    }
}
