//! The ledger: what it lets through, over days and restarts.

use proptest::prelude::*;

use super::*;

/// 2024-01-01 12:00 UTC.
const NOON: i64 = 1_704_110_400_000;
const MIDNIGHT: i64 = NOON + DAY_MS / 2;

fn ledger(tokens: Option<u64>, requests: Option<u64>, budget: Option<f64>) -> Ledger {
    let settings =
        Settings { daily_tokens: tokens, daily_requests: requests, daily_budget: budget, live_share: 0.2 };
    Ledger::new(&settings)
}

fn tokens(n: u64) -> Amount {
    Amount::request(n, 0.0)
}

#[test]
fn it_stops_at_the_limit_and_goes_on_at_midnight_utc() {
    let mut ledger = ledger(Some(1_000), None, None);
    let _ = ledger.reserve(tokens(1_000), Work::Live, NOON).unwrap();
    assert_eq!(ledger.reserve(tokens(1), Work::Live, NOON), Err(MIDNIGHT));
    assert_eq!(ledger.reserve(tokens(1), Work::Live, MIDNIGHT - 1), Err(MIDNIGHT));
    let spent = QuotaState {
        daily_quota: Some(1_000),
        current_count: 1_000,
        remaining: Some(0),
        exceeded: true,
        reset_at: MIDNIGHT,
    };
    assert_eq!(ledger.state(MIDNIGHT - 1), spent);
    let fresh = QuotaState {
        current_count: 0,
        remaining: Some(1_000),
        exceeded: false,
        reset_at: MIDNIGHT + DAY_MS,
        ..spent
    };
    assert_eq!(ledger.state(MIDNIGHT), fresh, "before anything is asked of it on the new day");
    assert!(ledger.reserve(tokens(1_000), Work::Live, MIDNIGHT).is_ok());
}

#[test]
fn backfill_leaves_live_work_its_share() {
    let mut ledger = ledger(Some(1_000), None, None);
    assert_eq!(ledger.room(Work::Backfill, 0.0, NOON), 800);
    let _ = ledger.reserve(tokens(800), Work::Backfill, NOON).unwrap();
    assert!(ledger.reserve(tokens(1), Work::Backfill, NOON).is_err());
    assert!(!ledger.state(NOON).exceeded, "live work has something left");
    let _ = ledger.reserve(tokens(200), Work::Live, NOON).unwrap();
    assert!(ledger.reserve(tokens(1), Work::Live, NOON).is_err());
    // And live work may take what back-fill has left.
    let mut ledger = self::ledger(Some(1_000), None, None);
    let _ = ledger.reserve(tokens(900), Work::Live, NOON).unwrap();
    assert_eq!(ledger.room(Work::Backfill, 0.0, NOON), 100);
    assert_eq!(ledger.room(Work::Live, 0.0, NOON), 100);
}

#[test]
fn what_a_request_did_not_take_is_given_back() {
    let mut ledger = ledger(Some(1_000), Some(2), None);
    let first = ledger.reserve(tokens(900), Work::Live, NOON).unwrap();
    ledger.settle(first, tokens(300), NOON);
    assert_eq!(ledger.state(NOON).current_count, 1, "requests are the tighter limit");
    assert_eq!(ledger.room(Work::Live, 0.0, NOON), 700);
    let _ = ledger.reserve(tokens(1), Work::Live, NOON).unwrap();
    assert_eq!(ledger.room(Work::Live, 0.0, NOON), 0, "no third request");
}

#[test]
fn what_was_reserved_yesterday_is_no_ones_today() {
    let mut ledger = ledger(Some(1_000), None, None);
    let late = ledger.reserve(tokens(900), Work::Live, MIDNIGHT - 1).unwrap();
    let _ = ledger.reserve(tokens(100), Work::Live, MIDNIGHT + 1).unwrap();
    ledger.settle(late, tokens(900), MIDNIGHT + 2);
    assert_eq!(ledger.state(MIDNIGHT + 2).current_count, 100);
}

#[test]
fn money_is_counted_in_millionths_and_rounded_up() {
    assert_eq!(micros(1_000_000, 0.02), 20_000);
    assert_eq!(micros(1, 0.02), 1);
    assert_eq!(micros(1, 0.0), 0);
    let mut ledger = ledger(None, None, Some(0.01));
    assert_eq!(ledger.room(Work::Live, 0.02, NOON), 500_000);
    assert_eq!(ledger.room(Work::Live, 0.0, NOON), u64::MAX, "what costs nothing is not held back");
    let _ = ledger.reserve(Amount::request(500_000, 0.02), Work::Live, NOON).unwrap();
    assert!(ledger.reserve(Amount::request(1, 0.02), Work::Live, NOON).is_err());
    assert!(ledger.reserve(Amount::request(1, 0.0), Work::Live, NOON).is_ok());
}

#[test]
fn warnings_come_once_a_day_at_eighty_and_at_a_hundred_percent() {
    let mut ledger = ledger(Some(1_000), None, None);
    let (most, all) = (Reached { kind: Kind::Tokens, all: false }, Reached { kind: Kind::Tokens, all: true });
    let _ = ledger.reserve(tokens(799), Work::Live, NOON).unwrap();
    assert_eq!(ledger.warnings(NOON), []);
    let _ = ledger.reserve(tokens(1), Work::Live, NOON).unwrap();
    assert_eq!(ledger.warnings(NOON), [most]);
    assert_eq!(ledger.warnings(NOON), []);
    assert!(ledger.reserve(tokens(201), Work::Live, NOON).is_err());
    assert_eq!(ledger.warnings(NOON), [all], "refused is as good as spent");
    assert!(ledger.state(NOON).exceeded);
    let _ = ledger.reserve(tokens(1_000), Work::Live, MIDNIGHT).unwrap();
    assert_eq!(ledger.warnings(MIDNIGHT), [most, all]);
}

/// What is written down, as processes of one pipeline share it.
fn write_down(ledger: &mut Ledger, table: &mut Spending, now_ms: i64) {
    let added = ledger.unwritten(now_ms);
    let sum = |a: Spent, b: Spent| Spent {
        tokens: a.tokens + b.tokens,
        requests: a.requests + b.requests,
        micros: a.micros + b.micros,
    };
    let before = if table.day == added.day { *table } else { Spending::default() };
    *table = Spending {
        day: added.day,
        live: sum(before.live, added.live),
        backfill: sum(before.backfill, added.backfill),
    };
    ledger.written(&added, table);
}

#[test]
fn what_is_written_down_counts_after_a_restart_and_for_others_and_not_the_next_day() {
    let mut table = Spending::default();
    let mut before = ledger(Some(1_000), None, None);
    let held = before.reserve(tokens(600), Work::Live, NOON).unwrap();
    let _ = before.reserve(tokens(100), Work::Backfill, NOON).unwrap();
    write_down(&mut before, &mut table, NOON);
    let mut other = ledger(Some(1_000), None, None);
    // What it spent before it looked is not forgotten.
    let _ = other.reserve(tokens(50), Work::Live, NOON).unwrap();
    write_down(&mut other, &mut table, NOON + 1);
    assert_eq!(other.state(NOON + 1).remaining, Some(250));
    assert_eq!(other.room(Work::Backfill, 0.0, NOON + 1), 250);
    // Given back by the one, to be spent by the other.
    before.settle(held, tokens(200), NOON + 2);
    write_down(&mut before, &mut table, NOON + 2);
    assert_eq!(before.state(NOON + 2).remaining, Some(650));
    write_down(&mut other, &mut table, NOON + 2);
    write_down(&mut other, &mut table, NOON + 3);
    assert_eq!(other.state(NOON + 3).remaining, Some(650));
    let mut late = ledger(Some(1_000), None, None);
    write_down(&mut late, &mut table, MIDNIGHT);
    assert_eq!(late.state(MIDNIGHT).remaining, Some(1_000));
}

#[test]
fn without_limits_everything_is_counted_and_nothing_refused() {
    let mut ledger = ledger(None, None, None);
    let _ = ledger.reserve(tokens(u64::MAX / 2), Work::Backfill, NOON).unwrap();
    let state = ledger.state(NOON);
    assert_eq!((state.daily_quota, state.current_count, state.exceeded), (None, u64::MAX / 2, false));
}

#[test]
fn a_clock_that_goes_back_opens_no_new_day() {
    let mut ledger = ledger(Some(1_000), None, None);
    let _ = ledger.reserve(tokens(1_000), Work::Live, MIDNIGHT).unwrap();
    assert!(ledger.reserve(tokens(1), Work::Live, NOON).is_err());
    assert_eq!(ledger.room(Work::Live, 0.0, NOON), 0);
}

proptest! {
    /// Whatever is reserved and settled, no day goes over its limit, and
    /// back-fill never takes the share of live work.
    #[test]
    fn no_day_goes_over_its_limit(
        steps in proptest::collection::vec((1..400_u64, any::<bool>(), 0..6 * 3_600_000_i64, 0.0..1.0), 1..80),
    ) {
        let mut ledger = ledger(Some(1_000), Some(20), None);
        let mut now = NOON;
        for (size, live, pause, used) in steps {
            now += pause;
            let work = if live { Work::Live } else { Work::Backfill };
            let room = ledger.room(work, 0.0, now);
            let taken = ledger.reserve(tokens(size), work, now);
            prop_assert_eq!(taken.is_ok(), size <= room, "{} of {}", size, room);
            if let Ok(reservation) = taken {
                #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let used = (size as f64 * used) as u64;
                ledger.settle(reservation, tokens(used), now);
            }
            let state = ledger.states(now);
            prop_assert!(state[0].1.current_count <= 1_000 && state[1].1.current_count <= 20);
            prop_assert!(ledger.own.backfill.tokens <= 800);
        }
    }
}
