//! Producers against a model, and what each rule means.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn name(n: u8) -> Arc<str> {
    format!("p{n}").into()
}

fn claim(epoch: u64, first: u64, count: u32) -> Claim {
    Claim { producer: name(0), epoch, first, count }
}

fn at(epoch: u64, next: u64) -> Position {
    Position { epoch, next }
}

/// With producer 0 at `next` of `epoch`.
fn known(epoch: u64, next: u32) -> Producers {
    let mut producers = Producers::default();
    producers.open(&name(0), Some(epoch), None).unwrap();
    producers.take(&claim(epoch, 0, next)).unwrap();
    producers.settle();
    producers
}

#[test]
fn each_number_is_taken_once_and_a_hole_is_refused() {
    let mut producers = known(3, 5);
    assert_eq!(producers.take(&claim(3, 0, 5)), Ok(5), "all known");
    assert_eq!(producers.take(&claim(3, 3, 4)), Ok(2), "the first two known");
    assert_eq!(producers.take(&claim(3, 7, 1)), Ok(0));
    let hole = producers.take(&claim(3, 9, 1)).unwrap_err();
    assert!(matches!(hole, ProducerError::OutOfSequence { expected: 8, got: 9, epoch: 3, .. }), "{hole}");
    assert_eq!(producers.take(&claim(3, 8, 1)), Ok(0), "a refusal changes nothing");
}

#[test]
fn an_epoch_that_is_opened_starts_at_0_and_ends_the_earlier_ones() {
    let mut producers = known(3, 5);
    assert_eq!(producers.open(&name(0), None, None), Ok(at(4, 0)));
    let zombie = producers.take(&claim(3, 5, 1)).unwrap_err();
    assert!(matches!(zombie, ProducerError::Fenced { epoch: 3, latest: 4, .. }), "{zombie}");
    assert!(matches!(producers.open(&name(0), Some(3), None), Err(ProducerError::Fenced { .. })));
    assert_eq!(producers.open(&name(0), Some(9), Some(0)), Ok(at(9, 0)), "epochs may be left out");
    assert_eq!(producers.open(&name(1), None, None), Ok(at(0, 0)));
}

#[test]
fn an_epoch_that_is_opened_again_goes_on_where_it_was() {
    let mut producers = known(3, 5);
    assert_eq!(producers.open(&name(0), Some(3), Some(2)), Ok(at(3, 5)));
    let mut changes = Vec::new();
    producers.put_changes(&mut changes);
    assert!(changes.is_empty(), "nothing to write");
    let hole = producers.open(&name(0), Some(3), Some(6)).unwrap_err();
    assert!(matches!(hole, ProducerError::OutOfSequence { expected: 5, got: 6, .. }), "{hole}");
    let hole = producers.open(&name(0), None, Some(1)).unwrap_err();
    assert!(matches!(hole, ProducerError::OutOfSequence { epoch: 4, expected: 0, got: 1, .. }), "{hole}");
    assert_eq!(producers.open(&name(0), Some(3), None), Ok(at(3, 5)), "a refusal opens nothing");
}

#[test]
fn a_forgotten_producer_starts_over_with_its_first_number_only() {
    let mut producers = Producers::default();
    let hole = producers.take(&claim(3, 1, 1)).unwrap_err();
    assert!(matches!(hole, ProducerError::OutOfSequence { expected: 0, got: 1, .. }), "{hole}");
    assert_eq!(producers.take(&claim(3, 0, 2)), Ok(0));
    assert_eq!(producers.open(&name(0), Some(3), Some(2)), Ok(at(3, 2)));
}

#[test]
fn those_whose_last_change_is_longest_ago_are_forgotten() {
    let mut producers = Producers::default();
    for n in [0, 1, 2, 3, 0, 2] {
        producers.open(&name(n), None, None).unwrap();
        producers.settle();
    }
    producers.keep(2);
    let left: BTreeSet<_> = producers.known.keys().cloned().collect();
    assert_eq!(left, [name(0), name(2)].into());
    assert_eq!(producers.table_bytes(), producers.table().len());
}

#[derive(Clone, Debug)]
enum Step {
    Open { who: u8, epoch: Option<u64>, sequence: Option<u64> },
    Take { who: u8, epoch: u64, first: u64, count: u32 },
    Settle,
    Undo,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let open = (0..4u8, prop::option::of(0..4u64), prop::option::of(0..6u64));
    let take = (0..4u8, 0..4u64, 0..12u64, 0..5u32);
    let step = prop_oneof![
        2 => open.prop_map(|(who, epoch, sequence)| Step::Open { who, epoch, sequence }),
        6 => take.prop_map(|(who, epoch, first, count)| Step::Take { who, epoch, first, count }),
        2 => Just(Step::Settle),
        1 => Just(Step::Undo),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever is asked in whatever order: in each epoch exactly the numbers
    /// from 0 on are taken, once; what is undone counts as never asked; and
    /// the tables written on the way lead to the same state.
    #[test]
    fn what_is_settled_is_every_number_once_and_reads_back(steps in steps(), most in 1usize..5) {
        let (mut producers, mut replayed) = (Producers::default(), Producers::default());
        let mut settled = producers.clone();
        let mut taken: BTreeSet<(u8, u64, u64)> = BTreeSet::new();
        let mut tried = taken.clone();
        for step in steps {
            match step {
                Step::Open { who, epoch, sequence } => {
                    let _ = producers.open(&name(who), epoch, sequence);
                }
                Step::Take { who, epoch, first, count } => {
                    let claim = Claim { producer: name(who), epoch, first, count };
                    if let Ok(known) = producers.take(&claim) {
                        for number in first..first + u64::from(count) {
                            let new = tried.insert((who, epoch, number));
                            prop_assert_eq!(new, number >= first + u64::from(known));
                            prop_assert!(number == 0 || tried.contains(&(who, epoch, number - 1)));
                        }
                    }
                }
                Step::Settle => {
                    let mut table = Vec::new();
                    producers.put_changes(&mut table);
                    replayed.replay(&table);
                    producers.settle();
                    (settled, taken) = (producers.clone(), tried.clone());
                }
                Step::Undo => {
                    producers.undo();
                    tried = taken.clone();
                    prop_assert_eq!(&producers, &settled);
                }
            }
        }
        producers.undo();
        prop_assert_eq!(producers.table(), replayed.table());
        prop_assert_eq!(producers.table().len(), producers.table_bytes());
        let mut snapshot = Producers::default();
        snapshot.replay(&producers.table());
        prop_assert_eq!(snapshot.table(), producers.table(), "a snapshot keeps the order too");
        producers.keep(most);
        prop_assert!(producers.known.len() <= most);
        replayed.keep(most);
        prop_assert_eq!(producers.table(), replayed.table(), "the same are forgotten after a restart");
    }

    #[test]
    fn any_bytes_replay_without_panic(table: Vec<u8>) {
        Producers::default().replay(&table);
    }
}
