//! What dictionaries give and cost, by block size and level, on three real
//! data sets.
//!
//! Of each data set the last quarter is held out; the dictionary is trained on
//! the rest. With and without it run in turn. All speeds are per second of
//! processor time.

use std::{
    convert::Infallible,
    fs::File,
    hint::black_box,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use serde_json::{Map, Value};

use super::{
    Better, Case, Options, Sample,
    data::Corpus,
    progress,
    stages::{header, time_of},
    timed,
    usage::cpu_seconds,
};
use crate::{
    dictionary::{Dictionary, Library, Sampler},
    frame::{FrameBatch, PREFIX_BYTES},
    segment::{Reader, Settings, seal_with, weigh},
    source::json::put_value,
    units::ByteSize,
};

/// Sizes of block that are compared.
const BLOCKS: [ByteSize; 5] =
    [ByteSize::kib(4), ByteSize::kib(16), ByteSize::kib(64), ByteSize::kib(256), ByteSize::mib(1)];
/// The dictionary: zstd's own default size, rounded.
const DICTIONARY_BYTES: usize = 112 << 10;
/// Frames of a batch, as a busy source sends them.
const BATCH_FRAMES: usize = 256;
/// Records read one by one in a round.
const POINT_READS: u64 = 200;
/// The least that is measured at once, in seconds.
const LEAST_SECONDS: f64 = 0.08;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Folder of data that may be used but not handed on: the logs.
    pub data: PathBuf,
    /// Levels of compression.
    pub levels: Vec<i32>,
}

/// One way of sealing the held-out frames.
struct Point {
    bytes: u64,
    seal_mb_per_s: f64,
    read_mb_per_s: f64,
    point_read_us: f64,
}

/// A table for people, its first row the heading.
pub type Table = Vec<Vec<String>>;

/// Measures every block size and level with and without a dictionary.
///
/// # Errors
/// If the fixtures are missing or a step fails.
pub fn dictionaries(options: &Options, grid: &Grid) -> Result<(Vec<Case>, Table)> {
    let mut sets = vec![
        ("irc", Corpus::load(&options.fixtures, "irc_ubuntu")?),
        ("scifact", Corpus::load(&options.fixtures, "scifact_docs")?),
    ];
    let logs = grid.data.join("loghub.jsonl.zst");
    match logs.exists() {
        true => sets.push(("loghub", loghub(&logs)?)),
        false => progress(format_args!(
            "SKIPPED: loghub is not measured: {} is missing; say where it is with --data",
            logs.display()
        )),
    }
    let heading = [
        "data",
        "level",
        "block",
        "ratio",
        "with",
        "smaller by",
        "pays from MB",
        "seal MB/s",
        "with",
        "read MB/s",
        "with",
        "point us",
        "with",
    ];
    let (mut cases, mut rows) = (Vec::new(), vec![heading.map(str::to_owned).to_vec()]);
    for (name, corpus) in &sets {
        let set = Set::new(corpus)?;
        progress(format_args!(
            "dictionaries on {name}: {} bytes to train on, {} held out, dictionary of {}",
            set.trained_on,
            set.plain_bytes,
            set.dictionary.bytes().len()
        ));
        for level in &grid.levels {
            for block_bytes in BLOCKS {
                progress(format_args!("dictionaries on {name}: level {level}, blocks of {block_bytes}"));
                let (without, with) = set.compare(options, *level, block_bytes)?;
                rows.push(set.row(name, *level, block_bytes, &without, &with));
                cases.extend(set.cases(name, *level, block_bytes, &without, &with));
            }
        }
    }
    Ok((cases, rows))
}

/// A data set, divided.
struct Set {
    dictionary: Dictionary,
    trained_on: usize,
    held_out: Vec<FrameBatch>,
    plain_bytes: usize,
}

impl Set {
    fn new(corpus: &Corpus) -> Result<Self> {
        let batches = corpus.batches(corpus.frames.len(), BATCH_FRAMES);
        let (trained_on, held_out) = batches.split_at(batches.len() - batches.len() / 4);
        let bytes = |batches: &[FrameBatch]| batches.iter().map(|batch| batch.bytes.len()).sum::<usize>();
        let mut sampler = Sampler::new(0, bytes(trained_on) as u64, 64 << 20);
        for batch in trained_on {
            let mut rest = batch.bytes.clone();
            for (_, payload) in batch.payloads() {
                sampler.push(&rest.split_to(PREFIX_BYTES + payload.len()));
            }
        }
        let dictionary = sampler.finish().train(DICTIONARY_BYTES)?;
        let (trained_on, plain_bytes) = (bytes(trained_on), bytes(held_out));
        Ok(Self { dictionary, trained_on, held_out: held_out.to_vec(), plain_bytes })
    }

    fn batches(&self) -> impl Iterator<Item = Result<FrameBatch, Infallible>> + '_ {
        self.held_out.iter().cloned().map(Ok)
    }

    fn compare(&self, options: &Options, level: i32, block_bytes: ByteSize) -> Result<(Point, Point)> {
        let settings =
            Settings { level, block_bytes, dictionary_block_bytes: block_bytes, ..Settings::default() };
        let dir = options.scratch_dir()?;
        Library::of_segments(dir.path()).keep(&self.dictionary)?;
        let (without, with) = (
            Sealed::new(self, &settings, None, dir.path())?,
            Sealed::new(self, &settings, Some(&self.dictionary), dir.path())?,
        );
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            a.push(without.measure()?);
            b.push(with.measure()?);
        }
        Ok((without.point(&a)?, with.point(&b)?))
    }

    /// Frames that must be sealed until the dictionary has saved its own
    /// bytes; `None` if it saves nothing.
    fn pays_from(&self, without: &Point, with: &Point) -> Option<f64> {
        let saved = without.bytes.checked_sub(with.bytes).filter(|saved| *saved > 0)?;
        Some(mb(self.dictionary.bytes().len()) * self.plain_bytes as f64 / saved as f64)
    }

    fn ratio(&self, point: &Point) -> f64 {
        self.plain_bytes as f64 / point.bytes as f64
    }

    fn row(
        &self,
        name: &str,
        level: i32,
        block_bytes: ByteSize,
        without: &Point,
        with: &Point,
    ) -> Vec<String> {
        let smaller = 100.0 * (1.0 - with.bytes as f64 / without.bytes as f64);
        let whole = |value: f64| format!("{value:.0}");
        vec![
            name.to_owned(),
            level.to_string(),
            block_bytes.to_string(),
            format!("{:.2}", self.ratio(without)),
            format!("{:.2}", self.ratio(with)),
            format!("{smaller:+.1} %"),
            self.pays_from(without, with).map_or_else(|| "never".to_owned(), |mb| format!("{mb:.1}")),
            whole(without.seal_mb_per_s),
            whole(with.seal_mb_per_s),
            whole(without.read_mb_per_s),
            whole(with.read_mb_per_s),
            whole(without.point_read_us),
            whole(with.point_read_us),
        ]
    }

    fn cases(
        &self,
        name: &str,
        level: i32,
        block_bytes: ByteSize,
        without: &Point,
        with: &Point,
    ) -> Vec<Case> {
        let case = |what: &str, unit: &str, better: Better, value: &dyn Fn(&Point) -> f64| {
            let (ours, theirs) = (Sample::of(value(with)), Sample::of(value(without)));
            Case::new(format!("{name}, level {level}, blocks of {block_bytes}, {what}"), unit, better, &ours)
                .against_peer("no dictionary", &ours, &theirs)
        };
        vec![
            case("times smaller", "x", Better::Higher, &|point| self.ratio(point)),
            case("seal", "MB/CPU s", Better::Higher, &|point| point.seal_mb_per_s),
            case("read back", "MB/CPU s", Better::Higher, &|point| point.read_mb_per_s),
            case("point read", "us", Better::Lower, &|point| point.point_read_us),
        ]
    }
}

/// The held-out frames, sealed one way.
struct Sealed<'a> {
    set: &'a Set,
    settings: &'a Settings,
    dictionary: Option<&'a Dictionary>,
    reader: Reader,
}

/// Seconds of processor time for one round of each.
struct Round {
    seal: f64,
    read: f64,
    point_reads: f64,
}

impl<'a> Sealed<'a> {
    fn new(
        set: &'a Set,
        settings: &'a Settings,
        dictionary: Option<&'a Dictionary>,
        dir: &Path,
    ) -> Result<Self> {
        let name = if dictionary.is_some() { "with.seg.zst" } else { "without.seg.zst" };
        let path = dir.join(name);
        seal_with(set.batches(), header(), settings, dictionary, time_of, &path)?;
        Ok(Self { set, settings, dictionary, reader: Reader::open(&path)? })
    }

    fn measure(&self) -> Result<Round> {
        let info = self.reader.info();
        let seal = || Ok(weigh(self.set.batches(), header(), self.settings, self.dictionary)?);
        let read = || {
            let mut bytes = 0;
            for batch in self.reader.batches_from(0) {
                bytes += batch?.bytes.len();
            }
            ensure!(bytes == self.set.plain_bytes, "{bytes} bytes of {} were read", self.set.plain_bytes);
            Ok(bytes)
        };
        let point_reads = || {
            for n in 0..POINT_READS {
                // Steps of the golden ratio, never twice in the same block in a row.
                let offset = info.base_offset + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % info.records;
                ensure!(black_box(self.reader.frame(offset)?).is_some(), "offset {offset} is missing");
            }
            Ok(())
        };
        Ok(Round { seal: cpu_of(seal)?, read: cpu_of(read)?, point_reads: cpu_of(point_reads)? })
    }

    fn point(&self, rounds: &[Round]) -> Result<Point> {
        let median =
            |value: fn(&Round) -> f64| Ok::<_, anyhow::Error>(super::sample_of(rounds, value)?.median());
        let plain = mb(self.set.plain_bytes);
        Ok(Point {
            bytes: self.reader.info().object_bytes,
            seal_mb_per_s: plain / median(|round| round.seal)?,
            read_mb_per_s: plain / median(|round| round.read)?,
            point_read_us: 1e6 * median(|round| round.point_reads)? / POINT_READS as f64,
        })
    }
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Seconds of processor time that `work` takes, of enough rounds to tell.
fn cpu_of<T>(mut work: impl FnMut() -> Result<T>) -> Result<f64> {
    let (first, once) = timed(&mut work);
    first?;
    let mut rounds = 1u32;
    while f64::from(rounds) * once < LEAST_SECONDS {
        rounds += 1;
    }
    let (done, seconds) =
        cpu_seconds(|| (0..rounds).try_for_each(|_| work().map(|done| drop(black_box(done)))));
    done?;
    Ok(seconds / f64::from(rounds))
}

/// The lines of 16 systems' logs, as records. The file has one system after
/// the other; a pipeline that collects them gets them side by side, so here
/// they take turns.
fn loghub(path: &Path) -> Result<Corpus> {
    let mut text = String::new();
    zstd::Decoder::new(File::open(path)?)
        .and_then(|mut decoder| decoder.read_to_string(&mut text))
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let mut systems: Vec<(String, Vec<Value>)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line: Map<String, Value> =
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        let system = line.get("src").and_then(Value::as_str).unwrap_or_default().to_owned();
        let record = log_record(line);
        match systems.last_mut().filter(|(name, _)| *name == system) {
            Some((_, records)) => records.push(record),
            None => systems.push((system, vec![record])),
        }
    }
    let longest = systems.iter().map(|(_, records)| records.len()).max().unwrap_or_default();
    let (mut frames, mut count) = (BytesMut::new(), 0);
    for record in (0..longest).flat_map(|n| systems.iter().filter_map(move |(_, records)| records.get(n))) {
        put_value(&mut frames, record);
        count += 1;
    }
    ensure!(count > 0, "{} holds no records", path.display());
    Ok(Corpus { frames: frames.freeze(), count })
}

/// A log line as a collector would send it.
fn log_record(mut line: Map<String, Value>) -> Value {
    let mut record = Map::new();
    if let Some(ts) = line.get("ts").and_then(Value::as_str) {
        record.insert("ts".into(), format!("{ts}Z").into());
    }
    for (from, to) in [("src", "source"), ("raw", "text"), ("lvl", "level"), ("comp", "component")] {
        if let Some(value) = line.remove(from).filter(|value| !value.is_null()) {
            record.insert(to.into(), value);
        }
    }
    Value::Object(record)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::record::RecordRef;

    #[test]
    fn the_systems_of_the_logs_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loghub.jsonl.zst");
        let line = |src: &str, n: u32| {
            format!(
                "{{\"src\":\"{src}\",\"n\":{n},\"ts\":\"2017-03-17T16:13:38.811000\",\"lvl\":null,\"raw\":\"{src} {n}\"}}\n"
            )
        };
        let text: String = [("a", 1), ("a", 2), ("b", 1)].map(|(src, n)| line(src, n)).concat();
        let mut encoder = zstd::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let corpus = loghub(&path).unwrap();
        assert_eq!(corpus.texts().unwrap(), ["a 1", "b 1", "a 2"]);
        let payload = corpus.payloads().swap_remove(0);
        let record = RecordRef::parse(&payload).unwrap();
        assert_eq!((record.source, record.ts_ms), (Some("a"), Some(1_489_767_218_811)));
    }
}
