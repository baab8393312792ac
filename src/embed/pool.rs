//! Fixed worker threads, each owning a state, fed from one bounded queue.
//!
//! The queue has three lanes; a worker that becomes free takes from the urgent
//! one first, then from the steady one. So a live query waits for the work in
//! progress and never for the work that is queued. The background lane takes
//! what is idle, and one worker of several never takes from it: the next live
//! job finds that one free, or busy with live work. Submitting waits for room
//! without blocking the thread it runs on. A job whose caller has gone away is
//! skipped.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Jobs of one lane that may wait, per worker: enough that a worker never
/// waits for its next job.
const WAITING_PER_WORKER: usize = 2;
/// Live jobs that a worker does before one of the background at the latest.
/// Under full live load background work is slow, but it goes on.
const LIVE_IN_A_ROW: u32 = 64;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Which jobs go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Someone is waiting for this one.
    Urgent,
    /// Throughput counts, latency does not.
    Steady,
    /// Takes what the others leave. Of several workers all but one do it; a
    /// single one has to, so there a live job waits for as long as the longest
    /// of these.
    Background,
}

/// Worker threads with a state of type `S` each. Dropping the pool waits for
/// the jobs in progress and joins the threads.
pub struct Pool<S> {
    lanes: Option<Lanes<S>>,
    workers: Vec<JoinHandle<()>>,
}

struct Lanes<S> {
    urgent: Lane<S>,
    steady: Lane<S>,
    background: Lane<S>,
}

/// One lane of the queue. A job holds a permit while it waits, and there are
/// as many permits as places: with a permit in hand there is room.
struct Lane<S> {
    sender: Sender<(Job<S>, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

type Queue<S> = Receiver<(Job<S>, OwnedSemaphorePermit)>;

/// The ends of the lanes that a worker takes from.
struct Queues<S> {
    urgent: Queue<S>,
    steady: Queue<S>,
    background: Queue<S>,
}

/// The job was lost: it panicked, or the threads are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread failed; its message is on standard error")]
pub struct JobLost;

impl<S: 'static> Pool<S> {
    /// Starts `threads` threads (at least one) called `name`, each with its
    /// own `new_state()`. A job that panics costs its worker that state, and
    /// nothing else.
    pub fn start<F>(name: &str, threads: usize, new_state: F) -> io::Result<Self>
    where
        F: Fn() -> S + Clone + Send + 'static,
    {
        let threads = threads.max(1);
        let places = threads * WAITING_PER_WORKER;
        let (urgent, urgent_queue) = lane(places);
        let (steady, steady_queue) = lane(places);
        let (background, background_queue) = lane(places);
        // Made first: should a thread fail to start, dropping it ends the others.
        let lanes = Some(Lanes { urgent, steady, background });
        let mut pool = Self { lanes, workers: Vec::new() };
        for n in 0..threads {
            let live_only = n == 0 && threads > 1;
            let queues = Queues {
                urgent: urgent_queue.clone(),
                steady: steady_queue.clone(),
                background: if live_only { never() } else { background_queue.clone() },
            };
            let new_state = new_state.clone();
            let work = move || work(&queues, new_state);
            pool.workers.push(std::thread::Builder::new().name(format!("{name}-{n}")).spawn(work)?);
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Queues `job` as soon as there is room. What comes back resolves to its
    /// result; dropping that, or this before there was room, cancels the job
    /// unless a worker has begun it.
    pub async fn submit<T, F>(&self, priority: Priority, job: F) -> Result<Ticket<T>, JobLost>
    where
        T: Send + 'static,
        F: FnOnce(&mut S) -> T + Send + 'static,
    {
        let (reply, ticket) = oneshot::channel();
        let run = move |state: &mut S| {
            if !reply.is_closed() {
                // The caller may leave while the job runs.
                let _ = reply.send(job(state));
            }
        };
        let lanes = self.lanes.as_ref().ok_or(JobLost)?;
        let lane = match priority {
            Priority::Urgent => &lanes.urgent,
            Priority::Steady => &lanes.steady,
            Priority::Background => &lanes.background,
        };
        let permit = Arc::clone(&lane.room).acquire_owned().await.map_err(|_| JobLost)?;
        lane.sender.try_send((Box::new(run), permit)).map_err(|_| JobLost)?;
        Ok(Ticket(ticket))
    }
}

/// The result of a job, once it is there.
pub struct Ticket<T>(oneshot::Receiver<T>);

impl<T> Ticket<T> {
    /// Waits for the result.
    pub async fn result(self) -> Result<T, JobLost> {
        self.0.await.map_err(|_| JobLost)
    }
}

impl<S> Drop for Pool<S> {
    fn drop(&mut self) {
        self.lanes = None;
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so it cannot fail.
            let _ = worker.join();
        }
    }
}

fn lane<S>(places: usize) -> (Lane<S>, Queue<S>) {
    let (sender, queue) = bounded(places);
    (Lane { sender, room: Arc::new(Semaphore::new(places)) }, queue)
}

fn work<S>(queues: &Queues<S>, new_state: impl Fn() -> S) {
    let mut state = new_state();
    let mut live_in_a_row = 0;
    while let Some((job, permit)) = queues.next(&mut live_in_a_row) {
        drop(permit);
        if catch_unwind(AssertUnwindSafe(|| job(&mut state))).is_err() {
            state = new_state();
        }
    }
}

impl<S> Queues<S> {
    /// The next job; none once the pool is being dropped and the queue is
    /// empty. `live_in_a_row` are the live jobs since the last of the
    /// background.
    fn next(&self, live_in_a_row: &mut u32) -> Option<(Job<S>, OwnedSemaphorePermit)> {
        if *live_in_a_row >= LIVE_IN_A_ROW
            && let Ok(job) = self.background.try_recv()
        {
            *live_in_a_row = 0;
            return Some(job);
        }
        let (job, live) = select_biased! {
            recv(self.urgent) -> job => (job, true),
            recv(self.steady) -> job => (job, true),
            recv(self.background) -> job => (job, false),
        };
        *live_in_a_row = if live { live_in_a_row.saturating_add(1) } else { 0 };
        job.ok().or_else(|| self.left())
    }

    /// What is left in the lanes. They close together, so nothing comes after
    /// one of them was found closed.
    fn left(&self) -> Option<(Job<S>, OwnedSemaphorePermit)> {
        [&self.urgent, &self.steady, &self.background].into_iter().find_map(|queue| queue.try_recv().ok())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use futures::future::join_all;

    use super::{super::testing::block_on, *};

    /// A pool of one worker which is busy until the sender is dropped.
    fn busy() -> (Pool<u32>, mpsc::Sender<()>) {
        let pool = Pool::start("test", 1, || 0).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let ticket = block_on(pool.submit(Priority::Steady, move |_: &mut u32| {
            begun.send(()).unwrap();
            wait.recv().unwrap_err();
        }));
        has_begun.recv().unwrap();
        // Forgotten, so that the job counts as wanted.
        std::mem::forget(ticket);
        (pool, release)
    }

    #[test]
    fn urgent_jobs_overtake_queued_ones() {
        let (pool, release) = busy();
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Arc::clone(&order);
            move |_: &mut u32| order.lock().unwrap().push(what)
        };
        let tickets = block_on(async {
            [
                pool.submit(Priority::Steady, note("steady")).await.unwrap(),
                pool.submit(Priority::Steady, note("steady")).await.unwrap(),
                pool.submit(Priority::Urgent, note("urgent")).await.unwrap(),
            ]
        });
        drop(release);
        block_on(join_all(tickets.map(Ticket::result)));
        assert_eq!(*order.lock().unwrap(), ["urgent", "steady", "steady"]);
    }

    #[test]
    fn live_jobs_overtake_those_of_the_background_but_not_for_ever() {
        let row = LIVE_IN_A_ROW as usize;
        let [urgent, steady, background] = [(); 3].map(|()| lane::<Vec<Priority>>(2 * row));
        let wanted = [
            (&background.0, Priority::Background, 2),
            (&steady.0, Priority::Steady, row),
            (&urgent.0, Priority::Urgent, 3),
        ];
        for (lane, priority, count) in wanted {
            for _ in 0..count {
                let permit = Arc::clone(&lane.room).try_acquire_owned().unwrap();
                let job: Job<Vec<Priority>> = Box::new(move |order| order.push(priority));
                assert!(lane.sender.try_send((job, permit)).is_ok());
            }
        }
        let queues = Queues { urgent: urgent.1, steady: steady.1, background: background.1 };
        let (mut live_in_a_row, mut order) = (0, Vec::new());
        for _ in 0..row + 5 {
            let (job, _permit) = queues.next(&mut live_in_a_row).unwrap();
            job(&mut order);
        }
        let runs: Vec<_> = order.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
        assert_eq!(
            runs,
            [
                (Priority::Urgent, 3),
                (Priority::Steady, row - 3),
                (Priority::Background, 1),
                (Priority::Steady, 3),
                (Priority::Background, 1)
            ]
        );
    }

    #[test]
    fn background_jobs_run_on_every_worker_but_one_and_live_ones_find_that_one_free() {
        for (threads, expected) in [(1, 1), (2, 1), (4, 3)] {
            let pool = Pool::start("test", threads, || 0).unwrap();
            let (begun, has_begun) = mpsc::channel();
            let mut releases = Vec::new();
            let mut submit = |priority| {
                let (release, wait) = mpsc::channel::<()>();
                releases.push(release);
                let begun = begun.clone();
                let job = move |_: &mut u32| {
                    begun.send(priority).unwrap();
                    wait.recv().unwrap_err();
                };
                block_on(pool.submit(priority, job)).unwrap()
            };
            let jobs: Vec<_> = (0..expected + 1).map(|_| submit(Priority::Background)).collect();
            for _ in 0..expected {
                assert_eq!(has_begun.recv(), Ok(Priority::Background));
            }
            if threads > 1 {
                let live = submit(Priority::Steady);
                assert_eq!(has_begun.recv(), Ok(Priority::Steady));
                drop(releases.pop());
                block_on(live.result()).unwrap();
            }
            // Nobody has begun the one too many, though a worker was free.
            assert_eq!(has_begun.try_recv(), Err(mpsc::TryRecvError::Empty), "{threads} threads");
            drop(releases);
            assert!(block_on(join_all(jobs.into_iter().map(Ticket::result))).iter().all(Result::is_ok));
        }
    }

    #[test]
    fn what_is_queued_when_the_pool_is_dropped_is_done_first() {
        let (pool, release) = busy();
        let lanes = [Priority::Background, Priority::Steady, Priority::Urgent];
        let tickets = lanes.map(|lane| block_on(pool.submit(lane, move |_: &mut u32| lane)).unwrap());
        let dropping = std::thread::spawn(move || drop(pool));
        drop(release);
        dropping.join().unwrap();
        assert_eq!(block_on(join_all(tickets.map(Ticket::result))), lanes.map(Ok));
    }

    #[test]
    fn a_full_queue_makes_the_caller_wait_and_nothing_is_lost() {
        let (pool, release) = busy();
        let submit = |n: u32| {
            let pool = &pool;
            async move {
                pool.submit(Priority::Steady, move |_: &mut u32| n).await.unwrap().result().await.unwrap()
            }
        };
        let mut all = Box::pin(join_all((0..20).map(submit)));
        let waker = futures::task::noop_waker();
        assert!(all.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        assert_eq!(pool.lanes.as_ref().unwrap().steady.sender.len(), WAITING_PER_WORKER);
        drop(release);
        assert_eq!(block_on(all), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_reported_and_costs_the_worker_only_its_state() {
        let pool = Pool::start("test", 1, || 7).unwrap();
        let panicking = |state: &mut u32| -> u32 {
            *state = 8;
            panic!("as the test wants");
        };
        let lost = block_on(async { pool.submit(Priority::Steady, panicking).await?.result().await });
        assert_eq!(lost, Err(JobLost));
        let state =
            block_on(async { pool.submit(Priority::Steady, |state: &mut u32| *state).await?.result().await });
        assert_eq!(state, Ok(7));
    }

    #[test]
    fn a_job_nobody_waits_for_is_skipped() {
        let (pool, release) = busy();
        let ran = Arc::new(Mutex::new(false));
        let note = Arc::clone(&ran);
        drop(block_on(pool.submit(Priority::Steady, move |_: &mut u32| *note.lock().unwrap() = true)));
        drop(release);
        drop(pool);
        assert!(!*ran.lock().unwrap());
    }

    #[test]
    fn dropping_the_pool_joins_its_threads() {
        let state = Arc::new(());
        let pool = Pool::start("test", 3, {
            let state = Arc::clone(&state);
            move || Arc::clone(&state)
        });
        drop(pool);
        // Every thread has given back its state and its way to make one.
        assert_eq!(Arc::strong_count(&state), 1);
    }
}
