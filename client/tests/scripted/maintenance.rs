//! Long work: watched to its end, or known to have been lost from sight.

use fencepost_client::{Applied, Error, Progress, Reason};

use crate::fake::{CallFate, Fake, PIPELINE};
use crate::fake_history::HistoryFate;

fn works(progress: &[u64]) -> Fake {
    let fake = Fake::start();
    fake.script(|state| state.history.progress = progress.to_vec());
    fake
}

#[tokio::test(start_paused = true)]
async fn long_work_tells_how_far_it_is_and_what_it_came_to() {
    let fake = works(&[10, 70, 100]);
    let mut work = fake.client().compact().await.unwrap();
    for bytes_done in [10, 70] {
        assert_eq!(work.progress().await.unwrap(), Some(Progress { bytes_done, bytes_total: 100 }));
    }
    assert_eq!(work.progress().await.unwrap(), None);
    assert_eq!(work.progress().await.unwrap(), None, "and stays so");
    assert_eq!(work.result().await.unwrap().log_bytes_after, 40);
    assert_eq!(fake.client().create_snapshot("/backup").await.unwrap().result().await.unwrap().lsn, 9);
    let refused = fake.client().create_snapshot("backup").await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::InvalidField));
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_without_a_result_is_unknown() {
    let error = works(&[10, 70]).client().compact().await.unwrap().result().await.unwrap_err();
    assert_eq!(error.applied(), Applied::Unknown);
    assert!(error.to_string().contains("it may go on"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_export_is_written_whole_or_is_an_error() {
    let mut file = Vec::new();
    assert_eq!(works(&[40, 60]).client().export_pipeline(PIPELINE, &mut file).await.unwrap(), 100);
    assert_eq!(file, [vec![40; 40], vec![60; 60]].concat());
    let error = works(&[40]).client().export_pipeline(PIPELINE, Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("40 of 100 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_fails_ends_an_export() {
    let full = std::io::Cursor::new(vec![0_u8; 50].into_boxed_slice());
    let error = works(&[40, 60]).client().export_pipeline(PIPELINE, full).await.unwrap_err();
    assert!(matches!(error, Error::Local { what: "writing the export", .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_import_is_sent_in_pieces_of_which_the_first_says_what_for() {
    const PIECE: usize = 256 << 10;
    for (bytes, pieces) in [(0, vec![0]), (PIECE, vec![PIECE, 0]), (PIECE * 2 + 5, vec![PIECE, PIECE, 5])] {
        let fake = Fake::start();
        let client = fake.client();
        client.status().await.unwrap();
        let file: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let import = client.import_pipeline(&file[..]).pipeline("test/new").actor("ada").reason("move");
        assert_eq!(import.send().await.unwrap().branches, 3);
        let imports = fake.see(|state| state.history.imports.clone());
        assert_eq!(imports.iter().map(|piece| piece.data.len()).collect::<Vec<_>>(), pieces);
        assert_eq!(imports.iter().flat_map(|piece| piece.data.to_vec()).collect::<Vec<_>>(), file);
        let first = &imports[0];
        assert_eq!((first.pipeline.as_str(), first.actor.as_str(), first.reason.as_str()), ("test/new", "ada", "move"));
        assert_eq!(first.cluster.as_ref().unwrap().cluster_id, "c1");
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_that_is_refused_halfway_says_why() {
    let fake = Fake::start();
    fake.history_fate(HistoryFate::Call(CallFate::Refuse(Reason::Exists, vec![])));
    let file = vec![0; 64 << 20];
    let error = fake.client().import_pipeline(&file[..]).send().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Exists));
    assert!(fake.see(|state| state.history.imports.len()) < 10, "the rest is not sent");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_fails_ends_an_import() {
    struct Broken;
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _context: &mut std::task::Context<'_>,
            _buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other("bad sector")))
        }
    }
    let error = Fake::start().client().import_pipeline(Broken).send().await.unwrap_err();
    assert!(matches!(&error, Error::Local { cause, .. } if cause.contains("bad sector")), "{error}");
    assert_eq!(error.applied(), Applied::No);
}
