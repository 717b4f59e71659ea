//! The watch with real files and inotify. Nothing here waits for a time: each step waits for what it must cause.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{A, B, both, brief};
use crate::source::directory::{DirectorySource, SourceError, read_once};
use crate::source::{Event, directory::disk};

/// Far more than anything here takes: beyond it the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Watch {
    directory: tempfile::TempDir,
    events: mpsc::Receiver<Vec<Event>>,
    objects: BTreeSet<String>,
}

impl Watch {
    /// A source on a directory with these files, once it has synced.
    async fn on(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("a file");
        }
        let (sender, events) = mpsc::channel(16);
        let source = DirectorySource::open(directory.path()).expect("a source");
        tokio::spawn(source.run(sender));
        let mut watch = Self { directory, events, objects: BTreeSet::new() };
        assert_eq!(watch.until("synced").await.last().map(String::as_str), Some("synced"));
        watch
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    /// What is told up to the first event that is `word`, or begins with it.
    async fn until(&mut self, word: &str) -> Vec<String> {
        let mut told = Vec::new();
        while !told.iter().any(|told: &String| told.starts_with(word)) {
            let batch = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            let batch =
                batch.unwrap_or_else(|_| panic!("`{word}` was not told, but {told:?}")).expect("a running source");
            told.extend(batch.iter().map(|event| brief(event, &mut self.objects)));
        }
        told
    }
}

fn named(name: &str) -> String {
    A.replace("name: a", &format!("name: {name}"))
}

#[tokio::test]
async fn files_that_are_written_renamed_and_deleted_are_followed() {
    let mut watch = Watch::on(&[("a.yaml", A)]).await;
    watch.write("b.yml", B);
    assert_eq!(watch.until("+b").await, ["+b"]);
    watch.write(".c.tmp", &named("c"));
    fs::rename(watch.path(".c.tmp"), watch.path("c.json")).expect("a rename");
    assert_eq!(watch.until("+c").await, ["+c"], "a hidden file is ignored until it is renamed into place");
    fs::remove_file(watch.path("a.yaml")).expect("removed");
    assert_eq!(watch.until("-a").await, ["-a"]);
    fs::rename(watch.path("b.yml"), watch.path("d.yaml")).expect("a rename");
    watch.write("e.yaml", &named("e"));
    assert_eq!(watch.until("+e").await, ["+e"], "a rename is no event");
    assert_eq!(watch.objects, BTreeSet::from(["Namespace b", "Namespace c", "Namespace e"].map(String::from)));
}

#[tokio::test]
async fn a_file_that_is_truncated_and_written_in_pieces_loses_nothing() {
    let mut watch = Watch::on(&[("f.yaml", &both())]).await;
    let mut file = fs::File::create(watch.path("f.yaml")).expect("truncated");
    drop(fs::File::create(watch.path("f.yaml")).expect("closed while it is empty"));
    for piece in [A, "---\n", B, "---\n", &named("c")] {
        file.write_all(piece.as_bytes()).expect("a piece");
        // Another writer's close makes the source read what is there so far.
        drop(fs::OpenOptions::new().append(true).open(watch.path("f.yaml")).expect("a close"));
    }
    drop(file);
    assert_eq!(watch.until("+c").await, ["+c"]);
    watch.write("f.yaml", &both());
    assert_eq!(watch.until("-c").await, ["-c"]);
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_does_not_make_it_flap() {
    let mut watch = Watch::on(&[("f.yaml", A)]).await;
    fs::rename(watch.path("f.yaml"), watch.path("f.yaml~")).expect("moved away");
    watch.write("f.yaml", &both());
    assert_eq!(watch.until("+b").await, ["+b"]);
}

#[tokio::test]
async fn new_directories_are_read_and_watched_and_removed_ones_forgotten() {
    let mut watch = Watch::on(&[]).await;
    fs::create_dir_all(watch.path("x/y")).expect("directories");
    watch.write("x/y/a.yaml", A);
    assert_eq!(watch.until("+a").await, ["+a"]);
    fs::rename(watch.path("x"), watch.path("z")).expect("a rename");
    watch.write("z/y/b.yaml", B);
    assert_eq!(watch.until("+b").await, ["+b"]);
    watch.write("z/y/b.yaml", &named("c"));
    assert_eq!(watch.until("+c").await, ["+c"], "the renamed directory is still watched");
    fs::create_dir(watch.path(".hidden")).expect("a directory");
    watch.write(".hidden/d.yaml", &named("d"));
    fs::remove_dir_all(watch.path("z")).expect("removed");
    watch.until("-c").await;
    watch.write("e.yaml", &named("e"));
    watch.until("+e").await;
    assert_eq!(watch.objects, BTreeSet::from(["Namespace e".to_owned()]));
}

#[tokio::test]
async fn links_are_followed_to_files_and_a_mounted_config_map_is_seen_to_change() {
    let mut watch = Watch::on(&[]).await;
    for (version, text) in [("..v1", A), ("..v2", B)] {
        fs::create_dir(watch.path(version)).expect("a directory");
        fs::write(watch.path(version).join("f.yaml"), text).expect("a file");
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, watch.path(name)).expect("a link");
    link("..v1", "..data");
    link("..data/f.yaml", "f.yaml");
    assert_eq!(watch.until("+a").await, ["+a"]);
    std::os::unix::fs::symlink("..v2", watch.path("..tmp")).expect("a link");
    fs::rename(watch.path("..tmp"), watch.path("..data")).expect("a rename");
    watch.until("-a").await;
    assert_eq!(watch.objects, BTreeSet::from(["Namespace b".to_owned()]));
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_does_not_hang() {
    let mut watch = Watch::on(&[]).await;
    std::os::unix::fs::symlink("nowhere", watch.path("dangling.yaml")).expect("a link");
    assert!(watch.until("!").await[0].contains("points to nothing"));
    std::os::unix::fs::symlink("/dev/zero", watch.path("device.yaml")).expect("a link");
    assert!(watch.until("!").await[0].contains("a device"));
    std::os::unix::fs::symlink("/tmp", watch.path("directory.yaml")).expect("a link");
    assert!(watch.until("!").await[0].contains("symbolic links to directories"));
    let huge = fs::File::create(watch.path("huge.yaml")).expect("a file");
    huge.set_len(disk::MAX_FILE + 1).expect("a size");
    drop(huge);
    assert!(watch.until("!").await[0].contains("larger than 16 MiB"));
    watch.write("latin.yaml", "");
    fs::write(watch.path("latin.yaml"), b"# caf\xe9\n").expect("a file");
    assert!(watch.until("!").await[0].contains("not UTF-8"));
}

#[tokio::test]
async fn a_directory_that_is_missing_or_goes_away_is_an_error() {
    let error = |path: &Path| DirectorySource::open(path).expect_err("an error");
    assert!(matches!(error(Path::new("/nowhere")), SourceError::Unreadable { .. }));
    assert!(matches!(error(Path::new("/dev/null")), SourceError::NotADirectory { .. }));
    assert!(matches!(read_once(Path::new("/nowhere")), Err(SourceError::Unreadable { .. })));
    let directory = tempfile::tempdir().expect("a directory");
    let (sender, mut events) = mpsc::channel(16);
    let source = tokio::spawn(DirectorySource::open(directory.path()).expect("a source").run(sender));
    assert_eq!(tokio::time::timeout(PATIENCE, events.recv()).await.expect("told"), Some(vec![Event::Synced]));
    fs::remove_dir(directory.path()).expect("removed");
    let ended = tokio::time::timeout(PATIENCE, source).await.expect("it ends").expect("it does not panic");
    assert!(matches!(ended, Err(SourceError::Gone { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_source_ends_with_its_receiver() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sender, events) = mpsc::channel(16);
    let source = tokio::spawn(DirectorySource::open(directory.path()).expect("a source").run(sender));
    drop(events);
    let ended = tokio::time::timeout(PATIENCE, source).await.expect("it ends").expect("it does not panic");
    assert!(ended.is_ok());
}
