//! Personal data: how much of what is labelled is found, and how much of what
//! is found is labelled.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::Deserialize;

use super::dataset::lines;
use crate::{
    bench::{Better, Case},
    transform::pii::{Action, Kind, Scanner, Settings},
};

/// The labels that name a kind the scanner looks for. Names of people, places
/// and the like have no pattern; it does not claim to find them.
const LABELS: [(&str, Kind); 7] = [
    ("DOMAIN_NAME", Kind::Url),
    ("EMAIL_ADDRESS", Kind::Email),
    ("IBAN_CODE", Kind::Iban),
    ("CREDIT_CARD", Kind::CreditCard),
    ("US_SSN", Kind::UsSsn),
    ("IP_ADDRESS", Kind::IpAddress),
    ("PHONE_NUMBER", Kind::Phone),
];

#[derive(Deserialize)]
struct Text {
    text: String,
    /// Characters, the end excluded, and a label.
    spans: Vec<(usize, usize, String)>,
}

/// What was found of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    labelled: u32,
    found: u32,
    right: u32,
}

/// Precision and recall of every kind. A finding is right only if kind, start
/// and end are those of the label.
pub fn cases(fixtures: &Path) -> Result<Vec<Case>> {
    let texts: Vec<Text> = lines(&fixtures.join("pii.jsonl.zst"))?;
    let scanner = Scanner::new(&Settings { action: Action::Detect, kinds: Kind::ALL.to_vec() });
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    texts.iter().for_each(|text| tally(text, &scanner, &mut tallies));
    let share = |part: u32, whole: u32| f64::from(part) / f64::from(whole.max(1));
    Ok(tallies
        .into_iter()
        .flat_map(|(kind, tally)| {
            let case = |what: &str, of: u32| {
                let name = format!("pii {kind}, {what} ({} labelled)", tally.labelled);
                Case::single(name, what, Better::Higher, share(tally.right, of))
            };
            [case("precision", tally.found), case("recall", tally.labelled)]
        })
        .collect())
}

fn tally(text: &Text, scanner: &Scanner, tallies: &mut BTreeMap<Kind, Tally>) {
    let mut bytes: Vec<usize> = text.text.char_indices().map(|(at, _)| at).collect();
    bytes.push(text.text.len());
    let at = |character: usize| bytes.get(character).copied();
    let labelled: Vec<_> = text
        .spans
        .iter()
        .filter_map(|(start, end, label)| {
            let (_, kind) = LABELS.iter().find(|(name, _)| name == label)?;
            Some((*kind, at(*start)?..at(*end)?))
        })
        .collect();
    for (kind, _) in &labelled {
        tallies.entry(*kind).or_default().labelled += 1;
    }
    for finding in scanner.findings(&text.text) {
        let tally = tallies.entry(finding.kind).or_default();
        tally.found += 1;
        tally.right += u32::from(labelled.contains(&(finding.kind, finding.range)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labelled_kind_at_the_labelled_place_is_right() {
        let scanner = Scanner::new(&Settings { action: Action::Detect, kinds: Kind::ALL.to_vec() });
        let mut tallies = BTreeMap::new();
        let text = |spans| Text { text: "é: write to ann@example.org".into(), spans };
        tally(&text(vec![(12, 27, "EMAIL_ADDRESS".into())]), &scanner, &mut tallies);
        assert_eq!(tallies[&Kind::Email], Tally { labelled: 1, found: 1, right: 1 });
        tally(&text(vec![(11, 27, "EMAIL_ADDRESS".into()), (0, 1, "PERSON".into())]), &scanner, &mut tallies);
        assert_eq!(tallies[&Kind::Email], Tally { labelled: 2, found: 2, right: 1 });
        assert_eq!(tallies.len(), 1, "names are not looked for");
    }
}
