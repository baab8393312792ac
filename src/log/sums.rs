//! CRC-32C of any stretch of a file, without reading the stretch.
//!
//! Frames may hold headers of batches that claim nearly the whole file, one
//! after the other, and to prove each of them wrong by reading what it claims
//! takes the square of the file's size. From the sums of all bytes up to each
//! page the sum of any stretch follows: with `shift(c, n)`, what `n` zero bytes
//! make of a sum `c`, the sum of `a..b` is `sum(b) ^ shift(sum(a), b - a)`.

use std::io;

use super::io::{IoFile, is_media_error, read_full_at};

/// Bytes between two sums that are kept.
pub const PAGE_BYTES: usize = 4 << 10;

/// The sums up to each page of a part of a file: 4 bytes for 4 KiB.
pub struct Sums {
    first_page: u64,
    to_page: Vec<u32>,
    /// Of all that was added.
    sum: u32,
    added: usize,
}

impl Sums {
    /// Starts at the page that holds `position`. What follows is to be
    /// [added](Self::add) from [`Self::start`] on.
    pub fn from(position: u64) -> Self {
        Self { first_page: position / PAGE_BYTES as u64, to_page: vec![0], sum: 0, added: 0 }
    }

    /// Position of the first byte that is summed up.
    pub fn start(&self) -> u64 {
        self.first_page * PAGE_BYTES as u64
    }

    /// Adds the next bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let to_boundary = PAGE_BYTES - self.added % PAGE_BYTES;
            let (some, rest) = bytes.split_at(to_boundary.min(bytes.len()));
            self.sum = crc32c::crc32c_append(self.sum, some);
            self.added += some.len();
            if self.added.is_multiple_of(PAGE_BYTES) {
                self.to_page.push(self.sum);
            }
            bytes = rest;
        }
    }

    /// What appending the bytes from `from` to `to` makes of `crc`; `None` if
    /// not all of them were added. What the medium does not give back counts
    /// as zeros.
    pub fn append(&self, crc: u32, file: &dyn IoFile, from: u64, to: u64) -> io::Result<Option<u32>> {
        let length = usize::try_from(to - from).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Some(crc));
        }
        let (Some(before), Some(through)) = (self.up_to(file, from)?, self.up_to(file, to)?) else {
            return Ok(None);
        };
        Ok(Some(crc32c::crc32c_combine(crc ^ before, through, length)))
    }

    fn up_to(&self, file: &dyn IoFile, position: u64) -> io::Result<Option<u32>> {
        let page = position / PAGE_BYTES as u64;
        let start = page * PAGE_BYTES as u64;
        let sum = usize::try_from(page - self.first_page).ok().and_then(|page| self.to_page.get(page));
        let Some(sum) = sum.copied() else { return Ok(None) };
        let mut bytes = [0; PAGE_BYTES];
        let part = bytes.get_mut(..usize::try_from(position - start).unwrap_or(0)).unwrap_or_default();
        match read_full_at(file, part, start) {
            Err(error) if is_media_error(&error) => part.fill(0),
            filled => drop(filled?),
        }
        Ok(Some(crc32c::crc32c_append(sum, part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::io::{Io, System};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_sum_of_any_stretch_is_that_of_its_bytes(
            length in 1usize..30_000,
            first in any::<prop::sample::Index>(),
            stretch in any::<(prop::sample::Index, prop::sample::Index)>(),
            crc: u32,
        ) {
            let bytes: Vec<u8> = (0..length).map(|n| (n * n / 7) as u8).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let file = System.open(&path, crate::log::io::Access::Read).unwrap();
            let first = first.index(length);
            let mut sums = Sums::from(first as u64);
            bytes[sums.start() as usize..].chunks(1_000).for_each(|some| sums.add(some));
            let at = |index: prop::sample::Index| first + index.index(length - first + 1);
            let (a, b) = (at(stretch.0), at(stretch.1));
            let (from, to) = (a.min(b), a.max(b));
            let found = sums.append(crc, &*file, from as u64, to as u64).unwrap();
            prop_assert_eq!(found, Some(crc32c::crc32c_append(crc, &bytes[from..to])));
        }
    }
}
