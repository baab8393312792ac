//! What is done with an endpoint, step by step.

use super::*;

const MISCONFIGURED: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_millis(700);

fn gate(more: &str, now: Instant) -> Gate {
    let settings = format!("name = 'a'\napi = 'openai'\nurl = 'http://a'\n{more}");
    Gate::new(&toml::from_str(&settings).unwrap(), MISCONFIGURED, now)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn fail(gate: &mut Gate, fault: &Fault, now: Instant) {
    let flight = gate.begin(10, now);
    gate.end(flight, 1, Ending::Failed(fault), 1.0, now, 0);
}

#[test]
fn queries_may_take_the_last_place_and_others_not() {
    let now = Instant::now();
    let mut gate = gate("concurrency = 2", now);
    let flight = gate.begin(1, now);
    assert!(matches!(gate.outlook(1, false, Duration::ZERO, now), Outlook::Busy { .. }));
    assert!(matches!(gate.outlook(1, true, Duration::ZERO, now), Outlook::Now { .. }));
    gate.end(flight, 1, Ending::Answered(1), 0.0, now, 0);
    assert!(matches!(gate.outlook(1, false, Duration::ZERO, now), Outlook::Now { .. }));
}

#[test]
fn a_429_pauses_it_for_as_long_as_it_says_and_costs_no_failure() {
    let now = Instant::now();
    let mut gate = gate("", now);
    let told = Fault::Rate { retry_after: Some(seconds(7)), reason: String::new() };
    for _ in 0..10 {
        fail(&mut gate, &told, now);
    }
    assert!(
        matches!(gate.outlook(1, false, Duration::ZERO, now), Outlook::Later { at, .. } if at == now + seconds(7))
    );
    assert!(matches!(gate.outlook(1, false, Duration::ZERO, now + seconds(7)), Outlook::Now { .. }));
}

#[test]
fn a_429_that_does_not_say_pauses_it_longer_each_time() {
    let now = Instant::now();
    let mut gate = gate("", now);
    let untold = Fault::Rate { retry_after: None, reason: String::new() };
    for wait in [1, 2, 4] {
        fail(&mut gate, &untold, now);
        assert!(
            matches!(gate.outlook(1, false, Duration::ZERO, now), Outlook::Later { at, .. } if at == now + seconds(wait))
        );
    }
}

#[test]
fn a_spent_account_and_a_wrong_key_close_it_for_long_with_their_reason() {
    let now = Instant::now();
    let mut spent = gate("", now);
    fail(&mut spent, &Fault::Quota { retry_after: Some(seconds(100)), reason: "no".into() }, now);
    let Outlook::Closed { until, error } = spent.outlook(1, true, Duration::ZERO, now) else { panic!() };
    assert_eq!(until, Some(now + seconds(100)));
    assert!(matches!(error, EmbedError::Quota { reset_at: Some(100_000), .. }));
    let mut wrong = gate("", now);
    fail(&mut wrong, &Fault::Configuration { reason: "key".into() }, now);
    let Outlook::Closed { until, error } = wrong.outlook(1, true, Duration::ZERO, now) else { panic!() };
    assert_eq!(until, Some(now + MISCONFIGURED));
    assert!(matches!(error, EmbedError::Configuration { .. }));
}

#[test]
fn a_bad_text_is_no_failure_of_the_endpoint() {
    let now = Instant::now();
    let mut gate = gate("", now);
    for _ in 0..10 {
        fail(&mut gate, &Fault::Input { reason: String::new() }, now);
    }
    assert!(matches!(gate.outlook(1, false, Duration::ZERO, now), Outlook::Now { .. }));
    assert!(!gate.has_worked_since(now));
}

#[test]
fn a_request_that_hangs_makes_it_slow_while_it_hangs_and_is_forgotten_slowly() {
    let now = Instant::now();
    let mut gate = gate("", now);
    let expected = |gate: &Gate, after: u64| match gate.outlook(1, true, Duration::ZERO, now + seconds(after))
    {
        Outlook::Now { expected } => expected.as_secs_f64(),
        other => panic!("{other:?}"),
    };
    let flight = gate.begin(1, now);
    assert!((expected(&gate, 20) - 20.0).abs() < 1e-6);
    gate.end(flight, 1, Ending::Answered(1), 0.0, now + seconds(30), 0);
    assert!((expected(&gate, 30) - 30.0).abs() < 1e-6);
    assert!((expected(&gate, 90) - 15.0).abs() < 1e-6);
}

fn rate(retry_after: Option<Duration>) -> Fault {
    Fault::Rate { retry_after, reason: String::new() }
}

fn ready_at(gate: &Gate, now: Instant) -> Instant {
    match gate.outlook(1, true, Duration::ZERO, now) {
        Outlook::Now { .. } => now,
        Outlook::Later { at, .. } => at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_429s_of_one_burst_are_one() {
    let now = Instant::now();
    let mut gate = gate("", now);
    let burst: Vec<Flight> = (0..4).map(|_| gate.begin(1, now)).collect();
    let later = now + seconds(1);
    for flight in burst {
        gate.end(flight, 1, Ending::Failed(&rate(None)), 1.0, later, 0);
    }
    assert_eq!(ready_at(&gate, later), later + seconds(1));
    let next = gate.begin(1, later + seconds(1));
    gate.end(next, 1, Ending::Failed(&rate(None)), 1.0, later + seconds(1), 0);
    assert_eq!(ready_at(&gate, later + seconds(1)), later + seconds(1) + seconds(2));
}

#[test]
fn an_answer_from_before_a_429_does_not_end_the_row() {
    let now = Instant::now();
    let mut gate = gate("", now);
    let early = gate.begin(1, now);
    fail(&mut gate, &rate(None), now + seconds(1));
    gate.end(early, 1, Ending::Answered(1), 0.0, now + seconds(1), 0);
    fail(&mut gate, &rate(None), now + seconds(9));
    assert_eq!(ready_at(&gate, now + seconds(9)), now + seconds(9 + 2));
}

#[test]
fn server_errors_open_the_circuit_unless_they_are_a_texts() {
    let now = Instant::now();
    let reason = || "HTTP 500".to_owned();
    let mut poisoned = gate("", now);
    let mut broken = gate("", now);
    for _ in 0..2 {
        fail(&mut broken, &Fault::ServerError { reason: reason() }, now);
        fail(&mut poisoned, &Fault::ServerError { reason: reason() }, now);
    }
    let flight = broken.begin(1, now);
    assert!(broken.is_last_straw(flight));
    fail(&mut broken, &Fault::ServerError { reason: reason() }, now);
    fail(&mut poisoned, &Fault::Poison { reason: reason() }, now);
    assert_eq!((broken.gauges(now).0, poisoned.gauges(now).0), (Circuit::Open, Circuit::Closed));
    assert!(!poisoned.is_last_straw(flight));
}

#[test]
fn answers_that_do_not_belong_close_it_at_the_second_for_longer_each_time() {
    let mut now = Instant::now();
    let mut gate = gate("", now);
    let wrong = Fault::Malformed { reason: "3 for 4".into() };
    fail(&mut gate, &wrong, now);
    assert_eq!(gate.gauges(now).0, Circuit::Closed);
    for wait in [60, 120, 240] {
        fail(&mut gate, &wrong, now);
        match gate.outlook(1, true, Duration::ZERO, now) {
            Outlook::Closed { until, error: EmbedError::Configuration { .. } } => {
                assert_eq!(until, Some(now + seconds(wait)));
            }
            other => panic!("{other:?}"),
        }
        now += seconds(wait);
    }
    let probe = gate.begin(1, now);
    assert!(probe.rehearsed, "a few words go before what costs something");
    gate.end(probe, 1, Ending::Answered(1), 0.0, now, 0);
    fail(&mut gate, &wrong, now);
    assert_eq!(gate.gauges(now).0, Circuit::Closed);
}

#[test]
fn one_that_never_answers_is_expected_to_take_longer_each_time() {
    let mut now = Instant::now();
    let mut gate = gate("", now);
    for expected in [700, 2_800, 11_200] {
        let flight = gate.begin(1, now);
        now += LONG;
        gate.abandon(flight, LONG, now);
        assert_eq!(gate.expected(Duration::ZERO, now), Duration::from_millis(expected));
    }
    let flight = gate.begin(1, now);
    gate.abandon(flight, LONG, now + seconds(0));
    assert_eq!(gate.expected(Duration::ZERO, now), Duration::from_millis(11_200), "no wait, no word");
}

#[test]
fn its_state_can_be_seen_with_times_of_day() {
    let now = Instant::now();
    let mut gate = gate("requests_per_minute = 600", now);
    let fresh = gate.state("a", now, 5_000);
    assert_eq!((fresh.circuit, fresh.retry_at, fresh.expected_seconds), (Circuit::Closed, None, None));
    assert_eq!((fresh.remaining_requests, fresh.remaining_tokens), (Some(60.0), None));
    fail(&mut gate, &rate(Some(seconds(7))), now);
    assert_eq!(gate.state("a", now + seconds(2), 7_000).retry_at, Some(12_000));
    fail(&mut gate, &Fault::Configuration { reason: "HTTP 404".into() }, now);
    let wrong = gate.state("a", now + seconds(2), 7_000);
    assert_eq!((wrong.circuit, wrong.retry_at), (Circuit::Open, Some(65_000)));
    let failure = LastFailure { class: "configuration".into(), reason: "HTTP 404".into(), at: 5_000 };
    assert_eq!(wrong.last_failure, Some(failure));
    let json = serde_json::to_value(wrong).unwrap();
    assert_eq!((&json["circuit"], &json["last_failure"]["at"]), (&"open".into(), &5_000.into()));
}
