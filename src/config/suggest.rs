//! The word somebody probably meant.

/// The candidate nearest to `written`, if one is near enough to be a slip of
/// the finger: within a third of its letters, and one at the least.
pub(super) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let allowed = (written.chars().count() / 3).max(1);
    let lower = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&lower, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_different_word_finds_none() {
        let keys = ["listen", "level", "path"];
        assert_eq!(nearest("lisen", keys).as_deref(), Some("listen"));
        assert_eq!(nearest("Listen", keys).as_deref(), Some("listen"));
        assert_eq!(nearest("levle", keys).as_deref(), Some("level"));
        assert_eq!(nearest("bucket", keys), None);
        assert_eq!(nearest("x", []), None);
    }
}
