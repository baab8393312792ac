//! When an approximate index is worth building, and over what.
//!
//! Inserting into one costs far more than appending to the table, so streams
//! never do: new vectors lie beyond the last index and are compared
//! exactly, and when they have become many, an index is built over them. Small
//! indexes are built anew together with what follows them, so that a tier of
//! `n` vectors has about log n of them and each vector is built in about log n
//! times.

/// An index over a range of chunk keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    pub name: String,
    pub first_key: i64,
    pub next_key: i64,
    pub rows: u64,
}

/// What to build, and what it takes the place of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Build {
    pub first_key: i64,
    pub replaced: Vec<String>,
    /// Vectors in it, about.
    pub rows: u64,
}

/// An index is built anew with what follows it if that is at least a half.
const FOLLOWED_BY: u64 = 2;

/// What to do for one tenant's tier: `indexes`, ascending, `open` vectors
/// beyond the last, and as many as `above` may be compared exactly.
pub(super) fn plan(indexes: &[Indexed], open: u64, above: u64) -> Option<Build> {
    if open <= above {
        return None;
    }
    let mut build =
        Build { first_key: indexes.last().map_or(0, |last| last.next_key), replaced: Vec::new(), rows: open };
    for index in indexes.iter().rev() {
        if index.rows > FOLLOWED_BY * build.rows {
            break;
        }
        build.first_key = index.first_key;
        build.rows += index.rows;
        build.replaced.push(index.name.clone());
    }
    Some(build)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOVE: u64 = 1_000;

    /// Lets vectors come in steps and does what is planned each time. Returns
    /// the indexes, and how often a vector was built in on average.
    fn grow(steps: &[u64]) -> (Vec<Indexed>, f64) {
        let (mut indexes, mut next_key, mut built): (Vec<Indexed>, u64, u64) = (Vec::new(), 0, 0);
        for step in steps {
            next_key += step;
            let open = next_key - indexes.last().map_or(0, |last| last.next_key.cast_unsigned());
            let Some(build) = plan(&indexes, open, ABOVE) else { continue };
            indexes.retain(|index| !build.replaced.contains(&index.name));
            built += build.rows;
            let name = format!("{}..{next_key}", build.first_key);
            assert_eq!(build.rows, next_key - build.first_key.cast_unsigned(), "{name}");
            let next_key = next_key.cast_signed();
            indexes.push(Indexed { name, first_key: build.first_key, next_key, rows: build.rows });
        }
        (indexes, built as f64 / next_key as f64)
    }

    #[test]
    fn few_vectors_are_left_to_be_compared_exactly() {
        assert_eq!(plan(&[], ABOVE, ABOVE), None);
        assert_eq!(
            plan(&[], ABOVE + 1, ABOVE),
            Some(Build { first_key: 0, replaced: vec![], rows: ABOVE + 1 })
        );
    }

    #[test]
    fn a_bulk_load_gets_one_index() {
        let (indexes, built) = grow(&[1_000_000]);
        assert_eq!((indexes.len(), built), (1, 1.0));
    }

    #[test]
    fn a_stream_keeps_few_indexes_side_by_side_that_join_without_gaps() {
        let (indexes, built) = grow(&[300; 10_000]);
        assert!(indexes.len() <= 8, "{indexes:?}");
        assert!(built < 12.0, "{built}");
        assert_eq!(indexes[0].first_key, 0);
        assert!(indexes.windows(2).all(|pair| pair[0].next_key == pair[1].first_key), "{indexes:?}");
    }
}
