//! How fast commits and searches are. Run by hand:
//! `cargo test --lib store::tests::measure -- --ignored --nocapture`

use std::time::{Duration, Instant};

use super::*;

const DIMENSIONS: usize = 384;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn vector(&mut self) -> Vec<f32> {
        (0..DIMENSIONS).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).collect()
    }

    /// Of 20,000 words the first are in nearly every text, the last in one of
    /// a thousand.
    fn text(&mut self, words: usize) -> String {
        let word = |n: u64| ((n >> 11) as f64 / (1u64 << 53) as f64).powi(3) * 20_000.0;
        (0..words).map(|_| format!("w{} ", word(self.next()) as u32)).collect()
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |q: f64| times[(times.len() as f64 * q) as usize].as_secs_f64() * 1e3;
    format!("p50 {:.1} ms, p95 {:.1} ms", at(0.5), at(0.95))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; needs half a minute and 300 MB"]
async fn commits_and_searches() {
    let mut fixture = Fixture::new(Database::Sqlite).await;
    fixture.space_key = fixture.store.register_space(&space(DIMENSIONS), 0).await.unwrap();
    let scanning = Store::open_with(
        &fixture.directory.path().join("store.sqlite"),
        &Settings { vector_memory: crate::units::ByteSize(0), ..Settings::default() },
    )
    .await
    .unwrap();
    let mut lease = fixture.lease().await;
    let mut random = Random(42);
    let mut next = 0;
    for total in [10_000, 100_000] {
        let mut times = Vec::new();
        let (start, before) = (next, Instant::now());
        let mut committing = Duration::ZERO;
        while next < total {
            let records = (next..next + 1_000)
                .map(|o| RecordRow {
                    dedupe_key: Some([0; 32].map(|_| random.next() as u8)),
                    ..record(o, "a", &random.text(60), Some(random.vector()))
                })
                .collect();
            let batch = fixture.batch(next, records);
            let begun = Instant::now();
            fixture.store.commit(&mut lease, batch).await.unwrap();
            committing += begun.elapsed();
            times.push(begun.elapsed());
            next += 1_000;
        }
        println!(
            "{total} rows: commits of 1,000: {}, {:.0} rows/s ({:.1?} in all), {} MB",
            percentiles(times),
            (next - start) as f64 / committing.as_secs_f64(),
            before.elapsed(),
            fixture.store.database_bytes().await.unwrap() / 1_000_000
        );
        for (name, store) in [("memory", &fixture.store), ("sqlite-vec", &scanning)] {
            for mode in [Mode::Vector, Mode::Keyword, Mode::Union] {
                let mut times = Vec::new();
                for _ in 0..40 {
                    let query =
                        Query { vector: Some(random.vector()), mode, ..fixture.query("a", &random.text(6)) };
                    let begun = Instant::now();
                    assert_eq!(store.search(&query).await.unwrap().hits.len(), 10);
                    times.push(begun.elapsed());
                }
                let first = times.remove(0);
                println!("{total} rows, {name}, {mode:?}: {} (first {first:.1?})", percentiles(times));
            }
        }
    }
}
