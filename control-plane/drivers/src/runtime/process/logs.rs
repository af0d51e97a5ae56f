//! Reads what [`super::output`] has kept, across rotation.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::folder::LOG;
use super::watch::FolderWatch;
use crate::runtime::{Line, Stream};

/// Entries of one line are put together again up to this size; a longer line comes in pieces.
const LONGEST: usize = 1 << 20;
const BLOCK: usize = 64 * 1024;

/// An entry as it stands in a file.
struct Entry<'a> {
    at: Timestamp,
    stream: Stream,
    goes_on: bool,
    text: &'a [u8],
}

fn entry(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let goes_on = fields.next()? == b"P";
    Some(Entry { at, stream, goes_on, text: fields.next().unwrap_or_default() })
}

/// Makes lines of the bytes of log files.
#[derive(Default)]
struct Assembler {
    /// The end of what was read, up to now without its newline.
    rest: Vec<u8>,
    /// Lines that go on in a later entry.
    parts: [Vec<u8>; 2],
}

impl Assembler {
    fn take(&mut self, bytes: &[u8], lines: &mut Vec<Line>) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut entries = rest.split(|byte| *byte == b'\n');
        self.rest = entries.next_back().unwrap_or_default().to_vec();
        // What is no entry was not written by us; a log is for people, so it is passed over in silence.
        for entry in entries.filter_map(entry) {
            let part = &mut self.parts[entry.stream as usize];
            part.extend_from_slice(entry.text);
            if !entry.goes_on || part.len() >= LONGEST {
                let text = String::from_utf8_lossy(part).into_owned();
                part.clear();
                lines.push(Line { at: entry.at, stream: entry.stream, text });
            }
        }
    }
}

/// The log files of an instance, oldest first. Counting up from `log.1` would not do: in the middle of a rotation there is
/// a gap.
fn files(dir: &Path) -> Vec<PathBuf> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(LOG)?.strip_prefix('.')?.parse().ok();
    let mut numbers: Vec<u32> = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(number).collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    let older = numbers.into_iter().map(|number| dir.join(format!("{LOG}.{number}")));
    older.chain([dir.join(LOG)]).collect()
}

/// The last `wanted` lines, oldest first. Reads from the end, so the size of the log does not matter.
pub(super) fn tail(dir: &Path, wanted: usize) -> Vec<Line> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut lines = Vec::new();
    for path in files(dir).into_iter().rev() {
        let Ok(mut file) = File::open(path) else { continue };
        let mut end = file.seek(SeekFrom::End(0)).unwrap_or(0);
        while end > 0 {
            // Doubled each time, so that reading everything again from a new beginning stays cheap.
            let start = end.saturating_sub(bytes.len().max(BLOCK) as u64);
            let mut block = vec![0; (end - start) as usize];
            if file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut block)).is_err() {
                return lines;
            }
            block.append(&mut bytes);
            bytes = block;
            end = start;
            lines.clear();
            Assembler::default().take(&bytes, &mut lines);
            // One more than wanted, because what was read may begin in the middle of a line.
            if lines.len() > wanted {
                lines.drain(..lines.len() - wanted);
                return lines;
            }
        }
    }
    lines
}

/// Sends every line after `since`, and then what comes, until nobody listens or the log is removed.
pub(super) async fn send(dir: PathBuf, since: Option<Timestamp>, follow: bool, lines: mpsc::Sender<Line>) {
    let listening = lines.clone();
    tokio::select! {
        // Reading ends by itself, or at the first line for which there is nobody; a quiet log sends none.
        () = listening.closed() => {}
        sent = read_and_send(&dir, since, follow, &lines) => {
            if let Err(error) = sent
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(dir = %dir.display(), %error, "cannot read on in the log");
            }
        }
    }
}

async fn read_and_send(
    dir: &Path,
    since: Option<Timestamp>,
    follow: bool,
    sender: &mpsc::Sender<Line>,
) -> io::Result<()> {
    // Before the first look, so that nothing falls between looking and watching.
    let mut watch = if follow { Some(FolderWatch::new(dir)?) } else { None };
    let mut assembler = Assembler::default();
    let mut current = oldest(dir)?;
    loop {
        while let Some(file) = &mut current {
            let mut buffer = vec![0; BLOCK];
            let read = file.read(&mut buffer)?;
            if read > 0 {
                let mut lines = Vec::new();
                assembler.take(&buffer[..read], &mut lines);
                for line in lines.into_iter().filter(|line| since.is_none_or(|since| line.at > since)) {
                    if sender.send(line).await.is_err() {
                        return Ok(());
                    }
                }
                continue;
            }
            match newer(dir, file)? {
                // It was renamed after we came to its end, and written to in between.
                Newer::Next(next) if file.metadata()?.len() == file.stream_position()? => current = Some(next),
                Newer::Next(_) => {}
                Newer::None => break,
            }
        }
        match &mut watch {
            Some(watch) => watch.changed().await?,
            None => return Ok(()),
        }
        if !dir.exists() {
            return Ok(());
        }
        if current.is_none() {
            current = oldest(dir)?;
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

fn oldest(dir: &Path) -> io::Result<Option<File>> {
    for path in files(dir) {
        if let Some(file) = open(&path)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

enum Newer {
    Next(File),
    /// This is the current one.
    None,
}

/// The file after this one. When it has fallen off the end meanwhile, the oldest that is left.
fn newer(dir: &Path, file: &File) -> io::Result<Newer> {
    let own = file.metadata()?;
    let is_own =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (own.dev(), own.ino()));
    // Names move on with every rotation: looked at again when that happens between finding a name and opening it.
    for _ in 0..100 {
        let files = files(dir);
        match files.iter().position(is_own) {
            Some(at) => {
                let next = files.get(at + 1).map(|path| open(path)).transpose()?.flatten();
                if is_own(&files[at]) {
                    return Ok(next.map_or(Newer::None, Newer::Next));
                }
            }
            None if file.metadata()?.nlink() == 0 => break,
            None => {}
        }
    }
    // Gone, or moved away by somebody else.
    Ok(oldest(dir)?.map_or(Newer::None, Newer::Next))
}
