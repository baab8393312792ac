//! The bounded bridge from async code to the processor.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use rayon::ThreadPool;
use tokio::sync::{Semaphore, oneshot};

/// Runs computation on a thread pool of its own, so that no tokio thread ever
/// computes. At most two jobs per thread are under way; further ones wait,
/// which holds back whoever submits them.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<ThreadPool>,
    room: Arc<Semaphore>,
}

/// How much less than others threads in the background get where all want the
/// processor: a hundredth (`nice(2)`).
const BACKGROUND_NICENESS: libc::c_int = 19;

impl Cpu {
    /// A bridge to `threads` threads; one per core if 0.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::of(rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("cpu-{n}")))
    }

    /// A bridge to one thread per core that yields to whoever waits for an
    /// answer: for work that only has to be done some time.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn background() -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::of(
            rayon::ThreadPoolBuilder::new()
                .thread_name(|n| format!("background-{n}"))
                .start_handler(|_| yield_to_others()),
        )
    }

    fn of(builder: rayon::ThreadPoolBuilder) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = builder.build()?;
        let room = Semaphore::new(2 * pool.current_num_threads());
        Ok(Self { pool: Arc::new(pool), room: Arc::new(room) })
    }

    /// Runs `work` on the pool, where rayon's parallel iterators stay too. A
    /// panic in `work` goes on in the caller.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let room = self.room.clone().acquire_owned().await;
        let (reply, answer) = oneshot::channel();
        self.pool.spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            drop(room);
            let _ = reply.send(done);
        });
        match answer.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            // The sender is dropped only after it sent.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Lowers the priority of this thread alone, which Linux allows.
fn yield_to_others() {
    // SAFETY: a system call on numbers only; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICENESS) } != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "work in the background has full priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn no_more_than_two_jobs_a_thread_are_under_way() {
        let cpu = Cpu::new(2).unwrap();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let jobs = (0..50).map(|n| {
            let (now, most) = (now.clone(), most.clone());
            cpu.run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(1));
                now.fetch_sub(1, Ordering::SeqCst);
                n
            })
        });
        assert_eq!(futures::future::join_all(jobs).await, (0..50).collect::<Vec<_>>());
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn work_in_the_background_yields_and_other_work_does_not() {
        // SAFETY: a system call on numbers only.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let ours = niceness();
        assert_eq!(Cpu::new(1).unwrap().run(niceness).await, ours);
        let cpu = Cpu::background().unwrap();
        let background = cpu.run(move || (niceness(), rayon::join(niceness, niceness)));
        let lower = ours.max(BACKGROUND_NICENESS);
        assert_eq!(background.await, (lower, (lower, lower)));
    }

    #[tokio::test]
    #[should_panic(expected = "as it fell")]
    async fn a_panic_reaches_the_caller() {
        Cpu::new(1).unwrap().run(|| panic!("as it fell")).await
    }
}
