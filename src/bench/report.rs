//! What a benchmark found: one JSON shape for programs, one table for people.

use serde::{Deserialize, Serialize};

use super::{machine::Machine, sample::Sample};

/// Everything a run of a benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The benchmark's name.
    pub bench: String,
    /// When it began, as RFC 3339.
    pub at: String,
    /// What it ran on.
    pub machine: Machine,
    /// What it found.
    pub results: Vec<Case>,
}

/// Which way a number improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// As throughput does.
    Higher,
    /// As latency does.
    Lower,
}

/// One thing measured. Values are medians over the runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// What was measured.
    pub case: String,
    /// Unit of the values.
    pub unit: String,
    /// Which way they improve.
    pub better: Better,
    /// Ours.
    pub ours: f64,
    /// Who else did the same work.
    pub peer: Option<String>,
    /// The peer's value.
    pub peer_value: Option<f64>,
    /// What bounds the value on this machine.
    pub ceiling: Option<String>,
    /// The bound.
    pub ceiling_value: Option<f64>,
    /// Ours over the peer's, or over the ceiling where there is no peer: taken
    /// pair by pair, then the median.
    pub ratio: Option<f64>,
    /// How far the runs lie apart: (maximum - minimum) / median, of `ratio`
    /// where there is one, else of `ours`.
    pub spread: Option<f64>,
    /// What `ratio` should reach, or `ours` where there is no ratio.
    pub goal: Option<f64>,
    /// Whether it did.
    pub met: Option<bool>,
    /// Lowest and highest of `ours`, for the table.
    #[serde(skip)]
    range: Option<(f64, f64)>,
}

/// A spread over this is marked: the median of such runs says little.
const WIDE_SPREAD: f64 = 0.25;

impl Case {
    /// What all runs gave.
    pub fn new(case: impl Into<String>, unit: impl Into<String>, better: Better, ours: &Sample) -> Self {
        Self {
            case: case.into(),
            unit: unit.into(),
            better,
            ours: ours.median(),
            peer: None,
            peer_value: None,
            ceiling: None,
            ceiling_value: None,
            ratio: None,
            spread: ours.spread(),
            goal: None,
            met: None,
            range: Some((ours.min(), ours.max())),
        }
    }

    /// A number that was computed rather than measured again and again, such
    /// as a share or a score.
    pub fn single(case: impl Into<String>, unit: impl Into<String>, better: Better, ours: f64) -> Self {
        Self { spread: None, range: None, ..Self::new(case, unit, better, &Sample::of(ours)) }
    }

    /// Beside a peer that did the same work. `ours` are the runs that
    /// [`Self::new`] was given; run for run, each had its peer's run after it.
    pub fn against_peer(self, peer: impl Into<String>, ours: &Sample, theirs: &Sample) -> Self {
        let ratio = ours.over(theirs);
        Self {
            peer: Some(peer.into()),
            peer_value: Some(theirs.median()),
            ratio: Some(ratio.median()),
            spread: ratio.spread(),
            ..self
        }
    }

    /// Beside what bounds it, measured in turn with it. The ratio is to the
    /// peer where there is one.
    pub fn under_ceiling(self, ceiling: impl Into<String>, ours: &Sample, bound: &Sample) -> Self {
        let ratio = ours.over(bound);
        let case = Self { ceiling: Some(ceiling.into()), ceiling_value: Some(bound.median()), ..self };
        match case.peer {
            Some(_) => case,
            None => Self { ratio: Some(ratio.median()), spread: ratio.spread(), ..case },
        }
    }

    /// With what the ratio, or the value where there is no ratio, should
    /// reach.
    pub fn with_goal(self, goal: f64) -> Self {
        let judged = self.ratio.unwrap_or(self.ours);
        let met = match self.better {
            Better::Higher => judged >= goal,
            Better::Lower => judged <= goal,
        };
        Self { goal: Some(goal), met: Some(met), ..self }
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |value: Option<f64>| value.map_or("-".to_owned(), number);
        let (min, max) = self.range.map_or((None, None), |(min, max)| (Some(min), Some(max)));
        let beside = [(&self.peer, self.peer_value), (&self.ceiling, self.ceiling_value)];
        let beside: Vec<String> = beside
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{} {}", number(value?), name.as_ref()?)))
            .collect();
        let spread = self.spread.map_or("-".to_owned(), |spread| {
            let wide = if spread > WIDE_SPREAD { " wide" } else { "" };
            format!("{:.0}%{wide}", spread * 100.0)
        });
        let goal = self.goal.map_or("-".to_owned(), |goal| {
            let met = if self.met == Some(true) { "met" } else { "missed" };
            format!("{} {met}", number(goal))
        });
        let against = if beside.is_empty() { "-".to_owned() } else { beside.join(", ") };
        vec![
            self.case.clone(),
            self.unit.clone(),
            number(self.ours),
            or_dash(min),
            or_dash(max),
            spread,
            or_dash(self.ratio),
            against,
            goal,
        ]
    }
}

impl Report {
    /// The results as cells, the first row the heading.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let heading = ["case", "unit", "median", "min", "max", "spread", "ratio", "against", "goal"];
        let heading = heading.map(str::to_owned).to_vec();
        std::iter::once(heading).chain(self.results.iter().map(Case::row)).collect()
    }
}

/// Three or four significant digits, as people read them.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".to_owned(),
        _ if size >= 1_000.0 => thousands(value),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample::new(values.to_vec()).unwrap()
    }

    #[test]
    fn a_result_has_every_key_and_null_where_there_is_nothing() {
        let case = Case::new("scan", "MB/s", Better::Higher, &sample(&[10.0, 12.0, 11.0]));
        let json = serde_json::to_value(&case).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "case",
            "unit",
            "better",
            "ours",
            "peer",
            "peer_value",
            "ceiling",
            "ceiling_value",
            "ratio",
            "spread",
            "goal",
            "met",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!((&json["better"], &json["ours"]), (&"higher".into(), &11.0.into()));
        assert!(json["peer"].is_null() && json["ratio"].is_null() && json["met"].is_null());
    }

    #[test]
    fn the_ratio_is_taken_pair_by_pair() {
        let (ours, theirs) = (sample(&[10.0, 30.0, 20.0]), sample(&[20.0, 20.0, 80.0]));
        let case = Case::new("c", "s", Better::Lower, &ours).against_peer("p", &ours, &theirs);
        // 0.5, 1.5, 0.25: not the ratio of the medians, which is 1.
        assert_eq!((case.ratio, case.spread), (Some(0.5), Some(2.5)));
    }

    #[test]
    fn a_ceiling_gives_the_ratio_only_where_there_is_no_peer() {
        let (ours, half, double) = (sample(&[4.0]), sample(&[2.0]), sample(&[8.0]));
        let alone = Case::new("c", "u", Better::Higher, &ours).under_ceiling("loop", &ours, &double);
        assert_eq!(alone.ratio, Some(0.5));
        let case = Case::new("c", "u", Better::Higher, &ours).against_peer("p", &ours, &half);
        let case = case.under_ceiling("loop", &ours, &double);
        assert_eq!((case.ratio, case.ceiling_value), (Some(2.0), Some(8.0)));
    }

    #[test]
    fn a_goal_is_met_in_the_direction_that_is_better() {
        let met = |better, goal| Case::single("c", "u", better, 2.0).with_goal(goal).met;
        assert_eq!((met(Better::Higher, 1.5), met(Better::Higher, 2.5)), (Some(true), Some(false)));
        assert_eq!((met(Better::Lower, 1.5), met(Better::Lower, 2.5)), (Some(false), Some(true)));
    }

    #[test]
    fn a_wide_spread_is_marked() {
        let spread = |values: &[f64]| Case::new("c", "u", Better::Higher, &sample(values)).row()[5].clone();
        assert_eq!(spread(&[100.0, 110.0, 105.0]), "10%");
        assert_eq!(spread(&[100.0, 200.0, 105.0]), "95% wide");
    }

    #[test]
    fn numbers_are_cut_to_what_can_be_read() {
        let shown: Vec<String> =
            [0.0, 0.01234, 1.2345, 12.345, 123.45, 1_234.5, 12_345_678.0].map(number).to_vec();
        assert_eq!(shown, ["0", "0.012", "1.23", "12.3", "123", "1,234", "12,345,678"]);
    }
}
