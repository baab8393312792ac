use std::{io, sync::mpsc, time::Duration};

use super::{
    Bookmarks, Content,
    pieces::read_pieces,
    taking::{Input, Step, take},
};
use crate::{pipeline::Origin, source::testing::Way, store::SourceProgress, units::ByteSize};

fn input(path: &str) -> Input {
    let progress = SourceProgress {
        source: "files".into(),
        path: path.into(),
        size: 1,
        mtime_ns: 1,
        records: 0,
        done: false,
    };
    let origin = Origin { source: "files".into(), peer: Some(path.into()), tenant: None };
    Input { origin, progress: Some(progress) }
}

#[tokio::test]
async fn what_is_read_is_kept_while_reading_on_takes_its_time() {
    let max_frame = ByteSize::kib(64);
    let Way { ingest, store, log: _log, .. } = &Way::open(max_frame).await;

    let (go_on, wait) = mpsc::channel::<()>();
    let read = move |out: &mut dyn FnMut(Step) -> bool| {
        let lines = b"{\"text\":\"one\"}\n{\"text\":\"two\"}\n".as_slice();
        let part = |out: &mut dyn FnMut(Step) -> bool| -> io::Result<()> {
            read_pieces(lines, Content::JsonLines, max_frame, &mut |piece| out(Step::Part(piece)))
        };
        out(Step::Begin(input("1.jsonl")));
        let end = part(out);
        out(Step::End(end));
        out(Step::Begin(input("2.jsonl")));
        let end = part(out);
        // The rest of the second file is long in coming.
        let _ = wait.recv();
        out(Step::End(end));
    };
    let mut bookmarks = Bookmarks::in_store(store.clone());
    let kept = async |of: &str| {
        let known = store.progress("files").await.unwrap();
        known.into_iter().find(|at| at.path == of).map(|at| (at.records, at.done))
    };
    let watching = async {
        while (kept("1.jsonl").await, kept("2.jsonl").await) != (Some((2, true)), Some((2, false))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(go_on);
    };
    let taking = take(read, ingest, Some(&mut bookmarks));
    let both = async { tokio::join!(taking, watching).0 };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("kept meanwhile").unwrap();
    assert_eq!(kept("2.jsonl").await, Some((2, true)));
}
