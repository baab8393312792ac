//! How far long work is, told while it goes on.

/// Hears how far long work is, after each step of it.
pub trait Meter: Send {
    /// `done` of `total` units are done. The work goes on when this is done,
    /// so it may hold the work to a rate.
    fn at(&mut self, done: u64, total: u64) -> impl Future<Output = ()> + Send;
}

impl<F: FnMut(u64, u64) + Send> Meter for F {
    fn at(&mut self, done: u64, total: u64) -> impl Future<Output = ()> + Send {
        self(done, total);
        std::future::ready(())
    }
}
