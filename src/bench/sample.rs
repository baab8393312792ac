//! Repeated measurements, and two kinds of them in turn.

use anyhow::{Result, ensure};

use super::progress;

/// What the runs of one measurement gave; at least one, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// `None` if there are no values or one is not a number.
    pub fn new(values: Vec<f64>) -> Option<Self> {
        (!values.is_empty() && values.iter().all(|v| v.is_finite())).then_some(Self(values))
    }

    /// Of one value; one that is not a number becomes 0.
    pub fn of(value: f64) -> Self {
        Self(vec![if value.is_finite() { value } else { 0.0 }])
    }

    /// The middle one, or the mean of the middle two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = sorted.get(middle).copied().unwrap_or_default();
        match middle.checked_sub(1).and_then(|below| sorted.get(below)) {
            Some(lower) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, upper),
            _ => upper,
        }
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// (maximum - minimum) / median; `None` of a single value.
    pub fn spread(&self) -> Option<f64> {
        let median = self.median();
        (self.0.len() > 1 && median != 0.0).then(|| (self.max() - self.min()) / median.abs())
    }

    /// Each value over its counterpart of `other`. Pairs with a zero below are
    /// left out; without any pair, 0.
    pub fn over(&self, other: &Self) -> Self {
        let pairs = self.0.iter().zip(&other.0).filter(|(_, b)| **b != 0.0);
        Self::new(pairs.map(|(a, b)| a / b).collect()).unwrap_or_else(|| Self::of(0.0))
    }

    /// Each value through `f`.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(self.0.iter().map(|v| f(*v)).collect()).unwrap_or_else(|| Self::of(0.0))
    }
}

/// One number of each run.
pub fn sample_of<T>(runs: &[T], value: impl Fn(&T) -> f64) -> Result<Sample> {
    let values: Vec<f64> = runs.iter().map(value).collect();
    let shown = format!("{values:?}");
    Sample::new(values).ok_or_else(|| anyhow::anyhow!("the runs gave no numbers: {shown}"))
}

/// What `measure` gives, `runs` times. It runs once before without being
/// counted, so that caches, files and lazily made things are as they will be.
pub fn repeated<T>(runs: usize, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    measure()?;
    (0..runs).map(|_| measure()).collect()
}

/// What `ours` and `theirs` give, in turn, `runs` times each: ours, theirs,
/// ours, theirs. Each runs once before without being counted.
pub fn interleaved<A, B>(
    what: &str,
    runs: usize,
    mut ours: impl FnMut() -> Result<A>,
    mut theirs: impl FnMut() -> Result<B>,
) -> Result<(Vec<A>, Vec<B>)> {
    ensure!(runs > 0, "--runs must be at least 1");
    ours()?;
    theirs()?;
    let (mut a, mut b) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    for run in 1..=runs {
        progress(format_args!("{what}, pair {run} of {runs}"));
        a.push(ours()?);
        b.push(theirs()?);
    }
    Ok((a, b))
}

/// What each of `sides` gives, in turn, `runs` times: A B C, A B C. Each runs
/// once before without being counted.
pub fn in_turn<T>(
    what: &str,
    runs: usize,
    sides: &mut [Box<dyn FnMut() -> Result<T> + '_>],
) -> Result<Vec<Vec<T>>> {
    ensure!(runs > 0, "--runs must be at least 1");
    for side in sides.iter_mut() {
        side()?;
    }
    let mut all: Vec<Vec<T>> = sides.iter().map(|_| Vec::with_capacity(runs)).collect();
    for run in 1..=runs {
        progress(format_args!("{what}, run {run} of {runs}"));
        for (side, given) in sides.iter_mut().zip(&mut all) {
            given.push(side()?);
        }
    }
    Ok(all)
}

/// The value at or below which the share `q` of `values` lies; sorts them.
/// 0 if there are none.
pub fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place among at most some millions"
    )]
    let place = (q.clamp(0.0, 1.0) * values.len() as f64).ceil().max(1.0) as usize;
    values.get(place - 1).or(values.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Sample::new(vec![4.0, 1.0, 3.0]).unwrap().median(), 3.0);
        assert_eq!(Sample::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap().median(), 2.5);
    }

    #[test]
    fn the_spread_is_relative_to_the_median() {
        assert_eq!(Sample::new(vec![8.0, 12.0, 10.0]).unwrap().spread(), Some(0.4));
        assert_eq!(Sample::of(8.0).spread(), None);
    }

    #[test]
    fn nothing_and_nonsense_are_no_sample() {
        assert_eq!(Sample::new(vec![]), None);
        assert_eq!(Sample::new(vec![1.0, f64::NAN]), None);
    }

    #[test]
    fn the_two_run_in_turn_and_the_first_of_each_is_not_counted() {
        let order = std::cell::RefCell::new(String::new());
        let call = |who: char| {
            order.borrow_mut().push(who);
            Ok(order.borrow().len())
        };
        let (a, b) = interleaved("test", 2, || call('a'), || call('b')).unwrap();
        assert_eq!((a, b), (vec![3, 5], vec![4, 6]));
        assert_eq!(*order.borrow(), "ababab");
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.5), 50.0);
        assert_eq!(quantile(&mut values, 0.99), 99.0);
        assert_eq!(quantile(&mut values, 1.0), 100.0);
        assert_eq!((quantile(&mut [7.0], 0.5), quantile(&mut [], 0.5)), (7.0, 0.0));
    }
}
