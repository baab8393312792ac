//! What the fuzz targets share. Each target is a function `target` beside the
//! format that it attacks: [`crate::frame`], [`crate::log`],
//! [`crate::segment`], [`crate::source::forward`].
//!
//! ```text
//! scripts/fuzz log_batch 600          libFuzzer, for ten minutes
//! cargo nextest run --lib fuzz        a bounded run, part of every test run
//! ```

use std::ops::Range;

/// What a script did to bytes.
#[derive(Debug, Default)]
pub struct Edits {
    touched: Vec<Range<usize>>,
    /// Whether bytes now stand in other places too.
    pub moved: bool,
}

impl Edits {
    /// Whether everything in `range` is as it was.
    pub fn spare(&self, range: &Range<usize>) -> bool {
        !self.moved && !self.touched.iter().any(|hit| hit.start < range.end && range.start < hit.end)
    }
}

/// Damages `bytes` as `script` says: flips, overwrites, copies, cuts.
pub fn edit(bytes: &mut Vec<u8>, mut script: &[u8]) -> Edits {
    let mut edits = Edits::default();
    while let Some(([kind, high, low, length], rest)) = script.split_first_chunk() {
        script = rest;
        let at = usize::from(u16::from_be_bytes([*high, *low])) % (bytes.len() + 1);
        let end = bytes.len().min(at + usize::from(*length));
        match kind % 4 {
            0 if at < bytes.len() => {
                bytes[at] ^= length;
                edits.touched.push(at..at + usize::from(*length > 0));
            }
            1 => {
                let new = script.get(..end - at).unwrap_or(script);
                bytes[at..at + new.len()].copy_from_slice(new);
                edits.touched.push(at..at + new.len());
                script = &script[new.len()..];
            }
            2 => {
                let to = usize::from(script.first().copied().unwrap_or(0)) * 8 % (bytes.len() + 1);
                let copy = bytes[at..end].to_vec();
                bytes.splice(to..to, copy);
                edits.moved |= at < end;
            }
            3 if *length == 0xff => {
                edits.touched.push(at..bytes.len());
                bytes.truncate(at);
            }
            _ => {}
        }
    }
    edits
}

/// Runs `target` on its corpus and on some thousand inputs made of it, the
/// same in every run; `THALWEG_FUZZ_CASES` says how many.
#[cfg(test)]
pub fn bounded(name: &str, target: impl Fn(&[u8])) {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!corpus.is_empty(), "no corpus in {}", folder.display());
    corpus.iter().for_each(|input| target(input));
    let cases = std::env::var("THALWEG_FUZZ_CASES").map_or(3_000, |n| n.parse().unwrap());
    let mut rng = SmallRng::seed_from_u64(7);
    for case in 0..cases {
        let mut input = corpus[rng.random_range(0..corpus.len())].clone();
        if rng.random_bool(0.3) {
            let other = &corpus[rng.random_range(0..corpus.len())];
            input.truncate(rng.random_range(0..=input.len()));
            input.extend(&other[rng.random_range(0..=other.len())..]);
        }
        let script: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
        edit(&mut input, &script);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&input)));
        if let Err(failure) = ran {
            eprintln!("{name}: case {case} failed, on the input {input:02x?}");
            std::panic::resume_unwind(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_damages_and_says_where() {
        let mut bytes = b"0123456789".to_vec();
        let edits = edit(&mut bytes, &[0, 0, 2, 1, 1, 0, 5, 2, b'x', b'y', 3, 0, 9, 0xff]);
        assert_eq!(bytes, b"0133 4xy78".iter().filter(|b| **b != b' ').copied().collect::<Vec<_>>());
        assert!(edits.spare(&(0..2)) && edits.spare(&(3..5)) && edits.spare(&(7..9)));
        assert!(!edits.spare(&(2..3)) && !edits.spare(&(6..8)) && !edits.spare(&(9..10)));
        assert!(edit(&mut bytes, &[2, 0, 0, 3, 0]).moved);
    }
}
