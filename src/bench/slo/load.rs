//! Many clients at once, at a pace.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use tokio::time::sleep_until;

use super::client::{Answer, Client, Request};
use crate::bench::usage;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// By each client as soon as it has its answer.
    Closed,
    /// So many a second by all clients together. One that is late sends all the
    /// same, and the time counts from when it was due.
    Open(f64),
    /// As `Open`, but a client that still waits for an answer leaves out what is
    /// due meanwhile, and the time counts from when it was sent.
    Pressing(f64),
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: u32,
    pub pace: Pace,
    pub seconds: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Seen {
    pub answers: Vec<Answer>,
    /// Until the last answer.
    pub seconds: f64,
    /// Processor time of the clients.
    pub cpu: Duration,
}

impl Seen {
    /// Milliseconds of every request that was done.
    pub fn done_ms(&self) -> Vec<f64> {
        self.answers.iter().filter(|answer| answer.is_done()).map(|answer| answer.ms).collect()
    }

    /// Share of the answers of all runs that are `such`, in percent.
    pub fn percent(runs: &[Self], such: fn(&Answer) -> bool) -> f64 {
        let answers = || runs.iter().flat_map(|run| &run.answers);
        let all = answers().count().max(1);
        100.0 * number(answers().filter(|answer| such(answer)).count()) / number(all)
    }
}

/// Has `load.clients` clients send what `request` makes of the number of the
/// client and that of the request, until the time is over and all is answered.
pub async fn drive(client: &Client, load: Load, request: impl Fn(usize, usize) -> Request) -> Result<Seen> {
    let (cpu, start) = (usage::own().cpu, Instant::now());
    let each = (0..load.clients).map(|n| one(client, load, n, start, &request));
    let answers: Vec<Answer> = join_all(each).await.into_iter().flatten().collect();
    let seconds = start.elapsed().as_secs_f64();
    Ok(Seen { answers, seconds, cpu: usage::own().cpu.saturating_sub(cpu) })
}

async fn one(
    client: &Client,
    load: Load,
    place: u32,
    start: Instant,
    request: impl Fn(usize, usize) -> Request,
) -> Vec<Answer> {
    let (mut answers, mut sent) = (Vec::new(), 0);
    for turn in 0.. {
        let due = due(load, place, turn).map(|due| start + due);
        let end = start + load.seconds;
        if due.unwrap_or_else(Instant::now) >= end {
            break;
        }
        if let Some(due) = due {
            let next = self::due(load, place, turn + 1).map(|next| start + next);
            if matches!(load.pace, Pace::Pressing(_)) && next.is_some_and(|next| next <= Instant::now()) {
                continue;
            }
            sleep_until(due.into()).await;
        }
        let request = request(place as usize, sent);
        sent += 1;
        let since = match load.pace {
            Pace::Open(_) => due.unwrap_or_else(Instant::now),
            Pace::Closed | Pace::Pressing(_) => Instant::now(),
        };
        answers.push(client.ask(request, since).await);
    }
    answers
}

/// When the client at `place` has its `turn`, after the start. The clients'
/// turns are spread evenly.
fn due(load: Load, place: u32, turn: u32) -> Option<Duration> {
    let (Pace::Open(per_s) | Pace::Pressing(per_s)) = load.pace else { return None };
    let nth = f64::from(turn) * f64::from(load.clients) + f64::from(place);
    Some(Duration::from_secs_f64(nth / per_s.max(f64::MIN_POSITIVE)))
}

/// A count as a number to divide.
#[expect(clippy::cast_precision_loss, reason = "at most some millions of requests")]
pub fn number(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_turns_of_all_clients_are_evenly_apart() {
        let load = Load { clients: 4, pace: Pace::Open(8.0), seconds: Duration::from_secs(1) };
        let mut due: Vec<Duration> =
            (0..4).flat_map(|place| (0..2).filter_map(move |turn| due(load, place, turn))).collect();
        due.sort();
        let expected: Vec<Duration> = (0..8).map(|n| Duration::from_millis(125 * n)).collect();
        assert_eq!(due, expected);
        assert_eq!(super::due(Load { pace: Pace::Closed, ..load }, 0, 1), None);
    }
}
