//! The sealed segment as a whole.

mod damage;
mod golden;
mod round_trip;
