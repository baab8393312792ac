//! English stems of words, remembered.
//!
//! A few thousand words make up nearly all of a text, and finding a stem
//! takes longer than looking it up. Each word has one place, given by its
//! hash, and the last word there keeps it: nothing has to be evicted, and the
//! memory is bounded by the places and by the length of a word.

use std::cell::RefCell;

use rust_stemmers::{Algorithm, Stemmer};

/// Places; a power of two.
const PLACES: usize = 1 << 14;

/// A stemmer with a memory.
pub(super) struct Stems {
    stemmer: Stemmer,
    places: Vec<Place>,
}

#[derive(Clone, Default)]
struct Place {
    /// A word and its stem behind it: side by side, they are looked up at once.
    both: String,
    /// Bytes of the word.
    word: usize,
}

thread_local! {
    static STEMS: RefCell<Stems> = RefCell::new(Stems::new(PLACES));
}

impl Stems {
    /// With `places`, at least one.
    fn new(places: usize) -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English), places: vec![Place::default(); places.max(1)] }
    }

    /// What `work` does with those of this thread. It must not ask for them
    /// again.
    pub fn of_thread<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        STEMS.with_borrow_mut(work)
    }

    /// The stem of a lower-case word.
    pub fn of(&mut self, word: &str) -> &str {
        let Self { stemmer, places } = self;
        let at = usize::try_from(hash(word) % places.len() as u64).unwrap_or(0);
        let Some(place) = places.get_mut(at) else { return "" };
        if place.both.get(..place.word) != Some(word) {
            place.both.clear();
            place.both.push_str(word);
            place.both.push_str(&stemmer.stem(word));
            place.word = word.len();
        }
        place.both.get(place.word..).unwrap_or_default()
    }
}

/// Spreads words over the places. Whoever makes words meet in one has them
/// stemmed again, no more.
fn hash(word: &str) -> u64 {
    let hash = word.as_bytes().chunks(8).fold(word.len() as u64, |hash, part| {
        let mut eight = [0; 8];
        eight.iter_mut().zip(part).for_each(|(place, byte)| *place = *byte);
        (hash.rotate_left(32) ^ u64::from_le_bytes(eight)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    hash >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stem_is_the_same_whether_remembered_or_not() {
        let stemmer = Stemmer::create(Algorithm::English);
        // All words share one place, and so displace each other.
        let mut stems = Stems::new(1);
        for word in ["running", "running", "rivers", "", "running", "größe", "rivers"] {
            assert_eq!(stems.of(word), stemmer.stem(word), "{word}");
        }
    }

    #[test]
    fn a_word_that_is_asked_again_is_not_stemmed_again() {
        let mut stems = Stems::new(1);
        stems.of("running");
        stems.places[0].both = "runningremembered".into();
        assert_eq!(stems.of("running"), "remembered");
    }
}
