//! The sealed segment as a whole.

mod damage;
mod dictionary;
mod golden;
mod round_trip;
